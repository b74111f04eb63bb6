"""The components of a checkpoint behind three verbs: embed prompts, denoise rows, decode latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.component import Component, PipelineSpec
from engines.native import resolution_models
from engines.runner import FAKE, FakeRunner, Runner, open_plans, open_runner
from server.blend import Blend
from server.conditioning import Condition, Text, conditions, wordings
from server.config import ServerConfig
from server.errors import InvalidRequest, ScheduleError
from server.image import Pixels, to_pixels
from server.levels import Choice
from server.noise import Noise, TorchGenerator
from server.philox import PhiloxGenerator
from server.prompt_encoder import Embedding, PromptEncoder
from server.request import Limits, Request
from server.sampler_names import find_sampler
from server.samplers import sampler_table
from server.schedule import TrainedSchedule
from server.step_curve import StepCurve
from server.table import Table
from server.tokenizer import PromptTokenizer
from server.variation import VariationNoise

Array: TypeAlias = npt.NDArray[np.float32]

TABLES_KEPT = 256
MAX_STEPS = 500
# Texts of one request: each costs a run of the text encoder.
MAX_TEXTS = 64
SEEDS = 2**64
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
GENERATORS: dict[str, Callable[[int], Noise]] = {"cpu": TorchGenerator, "philox": PhiloxGenerator}


@dataclass(frozen=True, slots=True)
class Work:
    """What one job computes with.

    Attributes:
        conditions: one per call.
        reserved: rows that any of its calls takes at most.
        start: (c, h, w), the first latent, noised already; without it, it is drawn.
        extra: (channels, h, w), what follows the latent in the UNet's input, in all rows and calls.
        label: class label of its rows, the noise level of an upscaler.
        blend: what it keeps of a latent that it repaints, where the UNet knows no mask.
    """

    table: Table
    noise: Noise
    conditions: tuple[Condition, ...]
    reserved: int
    start: Array | None = None
    extra: Array | None = None
    label: int | None = None
    blend: Blend | None = None

    @property
    def tokens(self) -> int:
        """Tokens of context, the same for all its rows."""
        return len(self.conditions[0].positives[0])

    @property
    def rows(self) -> int:
        """Rows of all its calls."""
        return sum(condition.rows for condition in self.conditions)


def request_choice(request: Request) -> Choice:
    """The levels that a request asks for."""
    return Choice(
        kind=request.schedule,
        steps=request.num_inference_steps,
        spacing=request.timestep_spacing,
        rho=request.rho or None,
        final=request.final_sigma,
        timesteps=request.timesteps,
        sigmas=request.sigmas,
    )


def request_noise(request: Request, index: int) -> Noise:
    """The generator of image `index` of a request."""
    generator = GENERATORS[request.noise_source]
    seed, subseed = request.seeds(index)
    if request.subseed_strength == 0 and request.noise_seed_delta == 0:
        return generator(seed)
    later = generator((seed + request.noise_seed_delta) % SEEDS) if request.noise_seed_delta else None
    return VariationNoise(generator(seed), generator(subseed), strength=request.subseed_strength, later=later)


class Pipeline:
    """A checkpoint's runners, its tokenizer and its schedule.

    Args:
        spec: the exported checkpoint.
        folder: where it lies.
        runners: one for each of `COMPONENTS`.

    `embed`, `denoise` and `decode` may each be called from a thread of its own.
    """

    def __init__(self, spec: PipelineSpec, folder: Path, runners: Mapping[str, Runner]) -> None:
        self.spec = spec
        self.trained = TrainedSchedule.from_config({**spec.schedule, "prediction_type": spec.prediction_type})
        self.runners = dict(runners)
        tokenizer = PromptTokenizer(folder / spec.tokenizer, spec.context_length)
        self._prompts = PromptEncoder(self.runners["text_encoder"], tokenizer)
        self._table = lru_cache(TABLES_KEPT)(sampler_table)

    @property
    def limits(self) -> Limits:
        """What requests may ask of this checkpoint."""
        found = find_sampler(str(self.spec.schedule.get("_class_name")))
        return Limits(
            self.spec.resolutions,
            found[0] if found else "euler",
            max_steps=min(MAX_STEPS, self.trained.length // 2),
            timesteps=self.trained.length,
            layers=self.spec.text_layers,
            distilled=self.trained.original_inference_steps,
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latent of a picture of that size in pixels."""
        return self.spec.latent_channels, height // self.spec.downscale, width // self.spec.downscale

    def table(self, request: Request) -> Table:
        """The request's sampler on its schedule; kept for the next request like it.

        Raises:
            InvalidRequest: levels that the sampler cannot walk on.
        """
        choice = request_choice(request)
        try:
            return self._table(request.sampler, choice, self.trained, request.eta, request.solver_order)
        except ScheduleError as error:
            raise InvalidRequest(f"{error}: send another schedule, rho or list") from error

    def embed(self, texts: Sequence[Text]) -> dict[Text, Embedding]:
        """Encode texts; those of late requests are kept."""
        return self._prompts.embed(texts)

    @property
    def embedding_cache(self) -> tuple[int, int]:
        """Texts that were found encoded, and that were not, since the start."""
        return self._prompts.hits, self._prompts.misses

    def works(self, request: Request) -> tuple[list[Work], dict[Text, Embedding]]:
        """What each image of a request computes with, and how its texts were encoded.

        Raises:
            InvalidRequest: its prompts change too often.
        """
        table = self.table(request)
        said = wordings(request, table.calls)
        texts = dict.fromkeys(text for wording in dict.fromkeys(said) for text in wording.texts)
        if len(texts) > MAX_TEXTS:
            raise InvalidRequest(
                f"the prompts change into {len(texts)} different texts on the way; send at most {MAX_TEXTS}: "
                "use fewer [a|b] and [a:b:0.4]"
            )
        embeddings = self.embed(list(texts))
        found = conditions(said, {text: embedding.states for text, embedding in embeddings.items()})
        reserved = max(condition.rows for condition in found)
        noises = [request_noise(request, index) for index in range(request.num_images)]
        return [Work(table, noise, found, reserved) for noise in noises], embeddings

    def denoise(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """One UNet call: (rows, c, h, w)."""
        output: npt.NDArray[np.float32] = self.runners["unet"].infer(feeds)["out_sample"]
        return output

    def decode(self, latents: npt.NDArray[np.float32]) -> Pixels:
        """(n, c, h, w) latents to (n, 8h, 8w, 3) uint8 pixels."""
        scaled = latents / np.float32(self.spec.scaling_factor)
        return to_pixels(self.runners["vae_decoder"].infer({"latent": scaled})["image"])


def open_component(component: Component, config: ServerConfig, spec: PipelineSpec) -> Runner:
    """Load one component; a fake UNet takes as long as the deployment's step-time curve says.

    Raises:
        EngineError: its file is missing or damaged, or the provider is not available.
    """
    if config.provider == FAKE and component.name == "unet":
        return FakeRunner(component, StepCurve(config.step_seconds, config.batch_sizes).seconds)
    if config.plans:
        return open_plans(component, spec, config.model, config.provider, config.settings(component, spec))
    return open_runner(component, config.model, config.provider, config.settings(component, spec))


Remote: TypeAlias = Callable[[Component, Mapping[tuple[int, int], str]], Runner]


def open_pipeline(config: ServerConfig, remote: Remote | None = None) -> Pipeline:
    """Load an export folder.

    Args:
        remote: makes the runner of a component that is placed in Triton, given the names of its models by the latents'
            (height, width) where there are several; without it every component is in process.

    Raises:
        EngineError: a file is missing or damaged, or the provider is not available.
        ScheduleError: the checkpoint's schedule is not supported.
    """
    spec = PipelineSpec.read(config.model)
    runners: dict[str, Runner] = {}
    for name in COMPONENTS:
        component = spec.component(name)
        if remote is not None and config.placement(name) == "triton":
            models = resolution_models(component, spec) if config.backend == "tensorrt" else {}
            runners[name] = remote(component, models)
        else:
            runners[name] = open_component(component, config, spec)
    return Pipeline(spec, config.model, runners)
