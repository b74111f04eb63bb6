"""How a server is deployed: what `server launch` was told, carried to the models in `config.pbtxt` parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from engines.component import Component, PipelineSpec
from engines.driver import device_capability
from engines.profiles import EVERY_STEP, Rows, compiled_resolutions, component_profile, default_rows, latent_sides
from engines.providers import Settings, default_cache
from server.errors import StartupError

Placement: TypeAlias = Literal["in_process", "triton"]
PLACEMENTS: tuple[Placement, ...] = ("in_process", "triton")
Backend: TypeAlias = Literal["python", "onnxruntime", "tensorrt"]
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder", "depth_estimator")
# Of these, what every checkpoint must have.
REQUIRED = 3
BACKENDS: tuple[Backend, ...] = ("python", "onnxruntime", "tensorrt")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One deployment of exported checkpoints.

    Attributes:
        model: the export folder of the default checkpoint.
        name: of the default checkpoint; empty takes the folder's.
        more: name and export folder of further checkpoints.
        provider: of every component; see `engines.runner.open_runner`.
        plans: run the plans in the export folder by that provider, in place of the exported files.
        backend: of Triton that runs the components placed in `triton`: ours in Python, or one of its own.
        cache: folder for what providers compile; empty takes `engines.providers.default_cache()`.
        cuda_graphs: whether a GPU records calls once for each shape, and replays them.
        cpu_precision: that OpenVINO computes in, `f32` or `bf16`; empty takes bf16 where the processor multiplies it.
        pinned: bind the UNet's threads to cores, which then are its own.
        unet_threads: CPU threads of the UNet; 0 lets the provider choose.
        component_threads: CPU threads of each component that runs once per image; 0 takes half of the cores.
        max_rows: rows of one UNet call.
        row_cap: rows that calls are filled up to; 0 takes the fewest that give nearly the best throughput, as measured.
        batch_sizes: rows that a compiled UNet takes; empty means any.
        decode_images: images of one VAE decoder call.
        queue_limit: images that may be accepted and unanswered; more are refused.
        queue_bytes: memory that unanswered requests may hold.
        response_cache_bytes: of answers that are kept for requests with a seed; 0 keeps none.
        step_seconds: (rows, seconds) of a UNet call at the first resolution; measured at start when empty.
        vae_tile: side in pixels; larger pictures are decoded and encoded in tiles of that side, 0 does it whole.
        picture_bytes: of an image file that comes.
        picture_pixels: of a picture that comes.
        text_encoder, unet, vae_decoder, vae_encoder, depth_estimator: where these components run.
        log_level: of the models' log.
        log_json: whether its lines are JSON.
        trace_endpoint: of an OpenTelemetry collector (OTLP over HTTP); empty traces nothing.
    """

    model: Path
    name: str = ""
    more: tuple[tuple[str, Path], ...] = ()
    provider: str = "auto"
    plans: bool = False
    backend: Backend = "python"
    cache: str = ""
    cuda_graphs: bool = False
    cpu_precision: str = ""
    pinned: bool = False
    unet_threads: int = 0
    component_threads: int = 0
    max_rows: int = 16
    row_cap: int = 0
    batch_sizes: tuple[int, ...] = ()
    decode_images: int = 4
    queue_limit: int = 1024
    queue_bytes: int = 2 << 30
    response_cache_bytes: int = 0
    step_seconds: tuple[tuple[int, float], ...] = ()
    vae_tile: int = 1024
    picture_bytes: int = 20 << 20
    picture_pixels: int = 32 << 20
    text_encoder: Placement = "triton"
    unet: Placement = "in_process"
    vae_decoder: Placement = "triton"
    vae_encoder: Placement = "triton"
    depth_estimator: Placement = "triton"
    log_level: str = "info"
    log_json: bool = False
    trace_endpoint: str = ""

    def placement(self, component: str) -> Placement:
        """Where a component runs."""
        place: Placement = getattr(self, component)
        return place

    @property
    def unet_rows(self) -> tuple[int, int]:
        """The fewest and the most rows of a UNet call, padding included."""
        fitting = [size for size in self.batch_sizes if size >= self.max_rows]
        return min(self.batch_sizes, default=1), min(fitting, default=self.max_rows)

    def checkpoints(self) -> dict[str, ServerConfig]:
        """The deployment of each checkpoint alone, by its name, the default one first.

        Raises:
            StartupError: two have one name.
        """
        found = {self.name or self.model.name: replace(self, more=())}
        for name, model in self.more:
            if name in found:
                raise StartupError(f"two checkpoints are named {name!r}; tell them apart with --model NAME=DIR")
            found[name] = replace(self, name=name, model=model, more=())
        return found

    def settings(self, component: Component, spec: PipelineSpec) -> Settings:
        """How a component is run here; a GPU that compiles it is told the shapes that will come."""
        rows = default_rows(component.name)
        if component.name in EVERY_STEP:
            rows = Rows(1, min(rows.optimum, self.unet_rows[1]), self.unet_rows[1])
        return Settings(
            threads=self.unet_threads if component.name == "unet" else self.component_threads or half_of_the_cores(),
            pinned=self.pinned and component.name == "unet",
            precision=self.cpu_precision,
            cache=Path(self.cache) if self.cache else default_cache(),
            cuda_graphs=self.cuda_graphs,
            profiles=tuple(
                component_profile(component, latent_sides(resolution, spec.downscale), rows)
                for resolution in (compiled_resolutions(component, spec) if device_capability() else ())
            ),
        )

    def to_json(self) -> str:
        """As one string, for a `config.pbtxt` parameter."""
        more = [(name, str(model)) for name, model in self.more]
        return json.dumps({**asdict(self), "model": str(self.model), "more": more})

    @classmethod
    def from_json(cls, text: str) -> ServerConfig:
        """Read what `to_json` wrote.

        Raises:
            StartupError: it is no such text.
        """
        try:
            values: Mapping[str, Any] = json.loads(text)
            known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
            sizes, curve = values.get("batch_sizes", ()), values.get("step_seconds", ())
            lists = {"batch_sizes": tuple(sizes), "step_seconds": tuple((int(r), float(s)) for r, s in curve)}
            more = tuple((str(name), Path(model)) for name, model in values.get("more", ()))
            return cls(**{**known, **lists, "model": Path(values["model"]), "more": more})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StartupError(
                f"the model's `deployment` parameter cannot be read ({error}); start it with `python -m server launch`"
            ) from error


def half_of_the_cores() -> int:
    """At least one. With all of them a decoder holds up the UNet calls beside it, which wait for the slowest thread."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def named_model(text: str) -> tuple[str, Path]:
    """`NAME=DIR` or `DIR`, which is named as the folder is."""
    name, _, folder = text.rpartition("=")
    path = Path(folder).resolve()
    return name or path.name, path
