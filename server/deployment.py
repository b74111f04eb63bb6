"""What can be wrong with a deployment, looked at before a server is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from engines.component import PipelineSpec
from engines.driver import this_machine
from engines.runner import FAKE, chosen_provider
from server.config import COMPONENTS, REQUIRED, ServerConfig
from server.errors import StartupError
from server.installation import SHARED_MEMORY_BYTES, find_installation
from server.repository import deployed_models
from server.schedule import TrainedSchedule
from server.tokenizer import PromptTokenizer

SHARED_MEMORY = Path("/dev/shm")
SERVED = (
    ("sd1", "text_to_image"),
    ("sd1", "inpainting"),
    ("sd1", "depth"),
    ("sd2", "text_to_image"),
    ("sd2", "inpainting"),
    ("sd2", "depth"),
    ("x4", "upscaling"),
)
# Of numbers, the least that makes sense; a guided image alone takes two rows.
LEAST = {
    "max_rows": 2,
    "row_cap": 0,
    "unet_threads": 0,
    "component_threads": 0,
    "decode_images": 1,
    "queue_limit": 1,
    "queue_bytes": 1,
    "response_cache_bytes": 0,
    "picture_bytes": 1,
    "picture_pixels": 1,
}
# In pixels; smaller ones would be all overlap.
SMALLEST_TILE = 64


def check_deployment(config: ServerConfig) -> None:
    """Look at everything that can be wrong before a server is started, so that it is told in one sentence.

    Raises:
        EngineError: an exported file is missing or damaged.
        ScheduleError: the checkpoint's schedule is not supported.
        ProviderError: the provider is unknown, or not available here.
        StartupError: a number that makes no sense, a checkpoint of a kind that is not served, or too little shared
            memory.
    """
    _check_numbers(config)
    for own in config.checkpoints().values():
        _check_checkpoint(own)
    _check_provider(config)
    if config.backend != "python":
        find_installation().require_backend(config.backend)
    _check_shared_memory(SHARED_MEMORY_BYTES * len(deployed_models(config)))


def _check_numbers(config: ServerConfig) -> None:
    for name, least in LEAST.items():
        if (number := getattr(config, name)) < least:
            raise StartupError(f"{name} is {number}: give at least {least}")
    if 0 != config.vae_tile < SMALLEST_TILE:
        raise StartupError(
            f"vae_tile is {config.vae_tile}: give at least {SMALLEST_TILE} pixels, or 0 to decode every picture whole"
        )


def _check_provider(config: ServerConfig) -> None:
    if config.plans:
        this_machine(config.provider)
    elif config.provider not in (FAKE, "auto"):
        chosen_provider(config.provider)


def _check_checkpoint(config: ServerConfig) -> None:
    spec = PipelineSpec.read(config.model)
    _check_kind(spec)
    if config.provider != FAKE:
        spec.verify(config.model)
    TrainedSchedule.from_config(spec.schedule)
    PromptTokenizer(config.model / spec.tokenizer, spec.context_length)


def _check_kind(spec: PipelineSpec) -> None:
    """Raises StartupError where requests could not be answered with these components."""
    if (spec.family, spec.task) not in SERVED:
        kinds = ", ".join(f"{family} for {task}" for family, task in SERVED)
        raise StartupError(
            f"{spec.checkpoint} is an {spec.family} checkpoint for {spec.task}; launch an export of {kinds}"
        )
    if missing := [name for name in COMPONENTS[:REQUIRED] if name not in spec.components]:
        raise StartupError(f"{spec.checkpoint} was exported without {', '.join(missing)}; export every component")
    if any(tensor.name == "mid_residual" for tensor in spec.component("unet").inputs):
        raise StartupError(f"{spec.checkpoint} was exported for a ControlNet; export it without --controlnet")


def _check_shared_memory(needed: int) -> None:
    """Triton's Python models talk through /dev/shm."""
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise StartupError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, the models need {needed >> 20}; "
            "give the container more, as in `docker run --shm-size=1g`"
        )
