"""Components by their plans: one for each resolution, run by ONNX Runtime's provider of the same compiler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from engines.component import Arrays, Component, PipelineSpec
from engines.driver import this_machine
from engines.errors import FeedError
from engines.manifest import find_plan
from engines.ort_runner import OrtRunner
from engines.profiles import Profile, compiled_resolutions, latent_sides
from engines.providers import DEFAULTS, Settings


def plan_profiles(component: Component, spec: PipelineSpec, folder: Path, provider: str) -> list[Profile]:
    """The profiles of the plans that a `PlanRunner` has, without opening one; raises what it raises."""
    machine = this_machine(provider)
    every = compiled_resolutions(component, spec)
    return [find_plan(folder, component.name, r, machine, to_run=False)[1].profile for r in every]


class PlanRunner:
    """The plans of one component, for all resolutions of the export.

    Args:
        provider: `tensorrt`, `tensorrt_rtx`, or `auto` for the one that is installed.

    Raises:
        ArtefactError: the export is missing or damaged.
        PlanError: a resolution has no plan, or none that may be used on this machine.
        ProviderError: the provider is not available here, or cannot load a plan.
    """

    def __init__(
        self, component: Component, spec: PipelineSpec, folder: Path, provider: str, settings: Settings = DEFAULTS
    ) -> None:
        machine = this_machine(provider)
        self.component = component
        self.provider: str = machine.compiler
        self._plans: dict[tuple[int, int] | None, tuple[OrtRunner, Profile]] = {}
        for resolution in compiled_resolutions(component, spec):
            plan, manifest = find_plan(folder, component.name, resolution, machine)
            latent = latent_sides(resolution, spec.downscale) if manifest.recipe.resolution else None
            self._plans[latent] = OrtRunner(component, folder, self.provider, settings, plan=plan), manifest.profile

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        sizes = self.component.bind(feeds)
        latent = (sizes["height"], sizes["width"]) if "height" in sizes else None
        if latent not in self._plans:
            raise FeedError(f"{self.component.name} has no plan for latents of {latent}, only {list(self._plans)}")
        runner, profile = self._plans[latent]
        for name, shapes in profile.items():
            ends = zip(shapes.minimum, feeds[name].shape, shapes.maximum, strict=True)
            if not all(least <= size <= most for least, size, most in ends):
                raise FeedError(
                    f"input {name!r} of {self.component.name} has shape {list(feeds[name].shape)}, its plan takes "
                    f"{shapes}; build one with other --rows or --tokens, or send less at once"
                )
        return runner.infer(feeds)
