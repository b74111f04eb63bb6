"""The checkpoints that a server has loaded, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from engines.component import Component, PipelineSpec
from engines.native import resolution_models
from engines.runner import Runner, SerialRunner
from server.compiled import Sizes, compiled_sizes
from server.config import ServerConfig
from server.pipeline import Pipeline, open_component, open_pipeline
from server.placement import Placed, placed_components, sharing_key
from server.request import Limits


class Checkpoints(Mapping[str, Pipeline]):
    """Loaded checkpoints, the default one first.

    Args:
        pipelines: of different names.
        weights: bytes, by (checkpoint, component), of what was loaded; what is shared belongs to the first.
    """

    def __init__(self, pipelines: Sequence[Pipeline], weights: Mapping[tuple[str, str], int] | None = None) -> None:
        self.weights = dict(weights or {})
        self._by_name = {pipeline.name: pipeline for pipeline in pipelines}
        upscalers = {p.name: p.spec.resolutions for p in pipelines if p.low_resolution is not None}
        self._limits = {pipeline.name: replace(pipeline.limits, upscalers=upscalers) for pipeline in pipelines}

    def __getitem__(self, name: str) -> Pipeline:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def default(self) -> Pipeline:
        return next(iter(self._by_name.values()))

    def limits(self, name: str) -> Limits:
        """What requests may ask of a checkpoint."""
        return self._limits[name]


Remote: TypeAlias = Callable[[Component, str, Mapping[tuple[int, int], str]], Runner]


def open_checkpoints(config: ServerConfig, remote: Remote | None = None) -> Checkpoints:
    """Load all checkpoints of a deployment. What `sharing_key` finds the same is loaded once.

    Args:
        remote: makes the runner of a component that is placed in Triton, given the name of its model, or those of its
            models by the latents' (height, width); without it every component is in process.

    Raises:
        EngineError: a file is missing or damaged, or the provider is not available.
        ScheduleError: a checkpoint's schedule is not supported.
    """
    placed = placed_components(config) if remote is not None else {}
    loaded: dict[tuple[object, ...], Runner] = {}
    sizes: dict[tuple[object, ...], Sizes] = {}
    weights: dict[tuple[str, str], int] = {}

    def pipeline(name: str, own: ServerConfig) -> Pipeline:
        def open_one(component: Component, own: ServerConfig, spec: PipelineSpec) -> Runner:
            key = sharing_key(component, own, spec, name)
            if key not in loaded:
                weights[name, component.name] = component.size(own.model)
                place = placed.get((name, component.name))
                if place is not None and remote is not None:
                    runner = remote(component, place.name, _by_resolution(place))
                else:
                    runner = open_component(component, own, spec)
                # The loop alone calls the UNet.
                loaded[key] = runner if component.name == "unet" else SerialRunner(runner)
            return loaded[key]

        def measure(component: Component, own: ServerConfig, spec: PipelineSpec) -> Sizes:
            # What is shared is compiled as the first one's.
            key = sharing_key(component, own, spec, name)
            if key not in sizes:
                sizes[key] = compiled_sizes(component, own, spec)
            return sizes[key]

        return open_pipeline(own, open_one, name, measure)

    return Checkpoints([pipeline(name, own) for name, own in config.checkpoints().items()], weights)


def _by_resolution(place: Placed) -> dict[tuple[int, int], str]:
    if place.config.backend != "tensorrt":
        return {}
    models = resolution_models(place.component, place.spec)
    return {size: place.prefix + name for size, name in models.items()}
