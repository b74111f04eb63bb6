"""diffusers' pipelines on the checkpoints of the tests, as oracles of whole requests."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.image import Pixels, to_pixels
from server.rows import Array
from tests.drawing import Drawn, psnr

# Of latents in the UNet's scale, and decibels of pictures.
TOLERANCE, LEAST_PSNR = 1e-3, 45.0
# No latent of a trained checkpoint is larger; those of random weights are.
LARGE = 5.0


@dataclass(frozen=True)
class Method:
    """A sampler of ours, and diffusers' class for it with the settings that it needs."""

    sampler: str
    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)


METHODS = {
    method.sampler: method
    for method in (
        Method("euler", "EulerDiscreteScheduler"),
        Method("ddim", "DDIMScheduler"),
        Method("dpmpp_2m", "DPMSolverMultistepScheduler"),
        Method("euler_ancestral", "EulerAncestralDiscreteScheduler"),
        Method("heun", "HeunDiscreteScheduler"),
        Method("dpm2", "KDPM2DiscreteScheduler"),
        Method("dpm2_ancestral", "KDPM2AncestralDiscreteScheduler"),
        Method("dpmpp_2m_sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        Method("unipc", "UniPCMultistepScheduler"),
        Method("deis", "DEISMultistepScheduler"),
        Method("ddpm", "DDPMScheduler"),
    )
}
SECOND_ORDER = ("heun", "dpm2", "dpm2_ancestral")


@dataclass
class Expected:
    """What diffusers draws.

    Attributes:
        latents: (images, c, h, w), finished.
        pictures: (images, height, width, 3).
        timesteps: of its UNet calls.
    """

    latents: Array
    pictures: npt.NDArray[np.uint8]
    timesteps: list[float]


@cache
def _parts(kind: str, checkpoint: Path) -> Any:
    """The pipeline of that class; those of text-to-image checkpoints share their networks."""
    import diffusers
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = getattr(diffusers, kind).from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def oracle(
    kind: str, checkpoint: Path, method: Method, patch: Callable[[Any], Any] = lambda scheduler: scheduler
) -> Any:
    """diffusers' pipeline of that class, with the sampler on the checkpoint's own schedule.

    Args:
        patch: gives the scheduler that is used in place of the one made.
    """
    import diffusers

    pipeline = _parts(kind, checkpoint)
    config = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.scheduler = patch(getattr(diffusers, method.scheduler).from_config({**config, **method.config}))
    return pipeline


def draw(pipeline: Any, prompt: str, seeds: Sequence[int], *, steps: int, scale: float, **options: Any) -> Expected:
    """Call a pipeline for one image per seed, each with a generator of its own.

    Args:
        options: of the call. A picture or mask is repeated, since diffusers gives one picture one draw.
    """
    import torch

    count = len(seeds)
    repeated = {name: [value] * count if isinstance(value, Image.Image) else value for name, value in options.items()}
    timesteps: list[float] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda network, given: timesteps.append(float(given[1])))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            latents = pipeline(
                [prompt] * count,
                num_inference_steps=steps,
                guidance_scale=scale,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="latent",
                **repeated,
            ).images
    finally:
        hook.remove()
    return Expected(latents.numpy(), decode(pipeline, latents), timesteps)


def decode(pipeline: Any, latents: Any) -> npt.NDArray[np.uint8]:
    """(n, height, width, 3)."""
    import torch

    with torch.no_grad():
        pixels: Pixels = to_pixels(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample.numpy())
    return pixels


def calls(sampler: str, steps: int, strength: float = 1.0) -> int:
    """UNet calls of a request, by the table of samplers: those of second order call twice but at the end."""
    walked = int(steps * strength)
    return 2 * walked - 1 if sampler in SECOND_ORDER else walked


def assert_same(drawn: Drawn, expected: Expected) -> None:
    """Latents, pictures, and the timesteps of the last pass."""
    assert len(drawn.timesteps[-1]) == len(expected.timesteps)
    np.testing.assert_allclose(drawn.timesteps[-1], expected.timesteps, rtol=1e-5, atol=1e-3)
    assert difference(drawn, expected) <= TOLERANCE
    for picture, other in zip(drawn.pictures, expected.pictures, strict=True):
        assert psnr(picture, other) >= LEAST_PSNR


def difference(drawn: Drawn, expected: Expected) -> float:
    """The largest of the latents; where they are larger than noise, in parts of their largest."""
    assert drawn.latents.shape == expected.latents.shape
    scale = max(1.0, float(np.abs(expected.latents).max()) / LARGE)
    return float(np.abs(drawn.latents - expected.latents).max()) / scale
