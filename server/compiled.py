"""What the components of a deployment were compiled for, wherever they run: it is known before they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from engines.component import Component, PipelineSpec
from engines.native import tensorrt_profiles
from engines.plan_runner import plan_profiles
from engines.profiles import Profile, common_sizes
from engines.providers import COMPILING
from engines.runner import FAKE, chosen_provider
from server.config import ServerConfig
from server.errors import StartupError

# The fewest and the most `rows` of a call, and `tokens` of a prompt; nothing where a component takes any.
Sizes: TypeAlias = Mapping[str, tuple[int, int]]


def compiled_sizes(component: Component, config: ServerConfig, spec: PipelineSpec) -> Sizes:
    """What a component takes at every resolution.

    Raises:
        EngineError: a plan is missing, or none may be used here.
        StartupError: the calls of this deployment may have other rows.
    """
    sizes = common_sizes(component, _profiles(component, config, spec))
    if "rows" in sizes:
        _check_rows(component.name, config, *sizes["rows"])
    return sizes


def _profiles(component: Component, config: ServerConfig, spec: PipelineSpec) -> Sequence[Profile]:
    backend = config.backend if config.placement(component.name) == "triton" else "python"
    if backend == "tensorrt":
        return tensorrt_profiles(component, spec, config.model)
    if config.provider == FAKE:
        return ()
    if backend == "python" and config.plans:
        return plan_profiles(component, spec, config.model, config.provider)
    profiles = config.settings(component, spec).profiles
    compiles = profiles and (backend == "onnxruntime" or chosen_provider(config.provider) in COMPILING)
    return profiles if compiles else ()


def _check_rows(name: str, config: ServerConfig, least: int, most: int) -> None:
    """The UNet's calls have as many rows as the scheduler likes; those of others are cut where there are too many."""
    wanted = config.unet_rows if name == "unet" else (1, 1)
    if least <= wanted[0] and wanted[1] <= most:
        return
    lower = f"serve with --max-rows {most}, or " if name == "unet" and least <= wanted[0] else ""
    raise StartupError(
        f"the {name} is compiled for {least} to {most} rows and may be called with {wanted[0]} to {wanted[1]}: "
        f"{lower}build its plans with `python -m engines build DIR --rows {name}=1:{min(8, max(most, wanted[1]))}:"
        f"{max(most, wanted[1])}`"
    )
