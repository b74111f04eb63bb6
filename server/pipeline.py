"""The components of a checkpoint behind a few verbs: embed prompts, denoise rows, decode latents, encode pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.component import Component, PipelineSpec
from engines.runner import FAKE, FakeRunner, Runner, open_plans, open_runner
from server.compiled import Sizes, compiled_sizes
from server.conditioning import Text
from server.config import COMPONENTS, REQUIRED, ServerConfig
from server.depth import estimator_input
from server.errors import InvalidRequest, ScheduleError
from server.image import Pixels, to_pixels
from server.levels import Choice
from server.low_resolution import LowResolutionNoise
from server.prompt_encoder import Embedding, PromptEncoder
from server.request import Limits, Request
from server.request_sizes import UPSCALING
from server.sampler_names import find_sampler
from server.samplers import sampler_table
from server.schedule import TrainedSchedule
from server.step_curve import StepCurve
from server.table import Table
from server.tiling import Tiling, tiled_decode, tiled_encode
from server.tokenizer import PromptTokenizer

TABLES_KEPT = 256
# More than any picture has pixels in a row, or a call rows.
WHOLE = 2**20
MAX_STEPS = 500
Array: TypeAlias = npt.NDArray[np.float32]


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
        strength=1.0 if request.strength is None else request.strength,
    )


class Pipeline:
    """A checkpoint's runners, its tokenizer and its schedule.

    Args:
        spec: the exported checkpoint.
        folder: where it lies.
        runners: by component; one for each of `COMPONENTS` that was exported.
        name: in this server; by default the folder's.
        tile: side in pixels; larger pictures are decoded and encoded in tiles of that side, never if 0.
        sizes: by component, what those that are compiled take.

    `embed` and `denoise` may each be called from one thread at a time, the others from any.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        folder: Path,
        runners: Mapping[str, Runner],
        name: str = "",
        tile: int = 0,
        sizes: Mapping[str, Sizes] | None = None,
    ) -> None:
        self.spec = spec
        self.name = name or folder.name
        self.trained = TrainedSchedule.from_config({**spec.schedule, "prediction_type": spec.prediction_type})
        self.low_resolution = (
            LowResolutionNoise(spec.low_res_schedule, spec.max_noise_level) if spec.low_res_schedule else None
        )
        self.runners = dict(runners)
        tokenizer = PromptTokenizer(folder / spec.tokenizer, spec.context_length)
        sizes = sizes or {}
        most = {name: taken["rows"][1] for name, taken in sizes.items() if "rows" in taken}
        tokens = sizes.get("unet", {}).get("tokens")
        self._prompts = PromptEncoder(self.runners["text_encoder"], tokenizer, most.get("text_encoder", 0), tokens)
        self._decoder_rows = most.get("vae_decoder", WHOLE)
        self._table = lru_cache(TABLES_KEPT)(sampler_table)
        side = (tile or WHOLE) // spec.downscale
        self._tiling = Tiling((side, side))

    @property
    def limits(self) -> Limits:
        """What requests may ask of this checkpoint."""
        found = find_sampler(str(self.spec.schedule.get("_class_name")))
        return Limits(
            self.spec.resolutions,
            found[0] if found else "euler",
            model=self.name,
            task=self.spec.task,
            max_steps=min(MAX_STEPS, self.trained.length // 2),
            timesteps=self.trained.length,
            layers=self.spec.text_layers,
            distilled=self.trained.original_inference_steps,
            enlarges=UPSCALING if self.low_resolution else 1,
            max_noise_level=self.spec.max_noise_level,
            reads_pictures="vae_encoder" in self.runners,
            estimates_depth="depth_estimator" in self.runners,
        )

    @property
    def extra_channels(self) -> int:
        """Channels of the UNet's input beyond the latent's."""
        sample = self.runners["unet"].component.inputs[0]
        return int(sample.shape[1]) - self.spec.latent_channels

    @property
    def labelled(self) -> bool:
        """Whether the UNet takes a class label for each row."""
        return any(tensor.name == "class_labels" for tensor in self.runners["unet"].component.inputs)

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
            raise InvalidRequest(str(error)) from error

    def embed(self, texts: Sequence[Text]) -> dict[Text, Embedding]:
        """Encode texts; those of late requests are kept."""
        return self._prompts.embed(texts)

    @property
    def embedding_cache(self) -> tuple[int, int]:
        """Texts that were found encoded, and that were not, since the start."""
        return self._prompts.hits, self._prompts.misses

    def denoise(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """One UNet call: (rows, c, h, w)."""
        output: npt.NDArray[np.float32] = self.runners["unet"].infer(feeds)["out_sample"]
        return output

    def decode(self, latents: Array) -> Pixels:
        """(n, c, h, w) latents to (n, 8h, 8w, 3) uint8 pixels; an upscaler's to (n, 4h, 4w, 3)."""
        scaled = latents / np.float32(self.spec.scaling_factor)
        if self._fits(scaled.shape):
            return to_pixels(self._decode(scaled))
        return to_pixels(tiled_decode(self._decode, scaled, self.spec.downscale, self._tiling))

    def _fits(self, shape: tuple[int, ...], downscale: int = 1) -> bool:
        """Whether this is one tile."""
        return max(shape[-2:]) <= downscale * self._tiling.tile[0]

    def _decode(self, latents: Array) -> Array:
        infer, rows = self.runners["vae_decoder"].infer, self._decoder_rows
        parts = [infer({"latent": latents[i : i + rows]})["image"] for i in range(0, len(latents), rows)]
        image: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return image

    def encode(self, pictures: Array) -> Array:
        """(n, 3, 8h, 8w) pictures in [-1, 1] to the moments of their latents, (n, 2c, h, w)."""
        if self._fits(pictures.shape, self.spec.downscale):
            return self._encode(pictures)
        return tiled_encode(self._encode, pictures, self.spec.downscale, self._tiling)

    def _encode(self, pictures: Array) -> Array:
        moments: Array = self.runners["vae_encoder"].infer({"image": pictures})["moments"]
        return moments

    def estimate_depth(self, pixels: Pixels) -> Array:
        """(h, w, 3) uint8 to a depth map, (side, side), of no particular scale."""
        runner = self.runners["depth_estimator"]
        side = int(runner.component.inputs[0].shape[-1])
        depth: Array = runner.infer({"image": estimator_input(pixels, side)})["depth"][0]
        return depth


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


# Makes a component's runner.
Open: TypeAlias = Callable[[Component, ServerConfig, PipelineSpec], Runner]
# Tells what it takes.
Measure: TypeAlias = Callable[[Component, ServerConfig, PipelineSpec], Sizes]


def open_pipeline(
    config: ServerConfig, open_one: Open = open_component, name: str = "", measure: Measure = compiled_sizes
) -> Pipeline:
    """Load an export folder.

    Args:
        open_one: makes the runner of a component.
        name: of the checkpoint in this server.
        measure: tells what a component takes that is compiled.

    Raises:
        EngineError: a file is missing or damaged, or the provider is not available.
        StartupError: the checkpoint's schedule is not supported, or calls may have rows that a component does not take.
    """
    spec = PipelineSpec.read(config.model)
    names = [name for i, name in enumerate(COMPONENTS) if i < REQUIRED or name in spec.components]
    sizes = {name: measure(spec.component(name), config, spec) for name in names}
    runners = {name: open_one(spec.component(name), config, spec) for name in names}
    # What is compiled for every resolution takes tiles of no other size.
    tile = config.vae_tile
    if sizes["vae_decoder"] and (tile, tile) not in spec.resolutions:
        tile = 0
    return Pipeline(spec, config.model, runners, name, tile, sizes)
