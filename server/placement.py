"""Which components are Triton models of their own, and how these are called."""

from __future__ import annotations

from dataclasses import dataclass

from engines.component import Component, PipelineSpec
from engines.driver import device_capability
from engines.profiles import compiled_resolutions
from engines.providers import COMPILING
from server.config import COMPONENTS, ServerConfig


@dataclass(frozen=True, slots=True)
class Placed:
    """A component as a Triton model.

    Attributes:
        prefix: of the model's name; the default checkpoint's components have their own names.
        config: of its checkpoint alone.
    """

    prefix: str
    component: Component
    spec: PipelineSpec
    config: ServerConfig

    @property
    def name(self) -> str:
        """Of the model."""
        return self.prefix + self.component.name


def sharing_key(component: Component, config: ServerConfig, spec: PipelineSpec, checkpoint: str) -> tuple[object, ...]:
    """Equal keys mean that one runner or model serves both: equal files, compiled for the same shapes where they are.

    Args:
        config: of its checkpoint alone, which has this name.
    """
    native = config.backend != "python" and config.placement(component.name) == "triton"
    compiled = native or config.plans or (config.provider in ("auto", *COMPILING) and device_capability() is not None)
    return component.name, component.sha256 or checkpoint, compiled and compiled_resolutions(component, spec)


def placed_components(config: ServerConfig) -> dict[tuple[str, str], Placed]:
    """By (checkpoint, component), those that are Triton models; what is the same for two is one.

    Raises:
        EngineError: an export folder is missing or damaged.
    """
    found: dict[tuple[str, str], Placed] = {}
    same: dict[tuple[object, ...], Placed] = {}
    for i, (checkpoint, own) in enumerate(config.checkpoints().items()):
        spec = PipelineSpec.read(own.model)
        for name in COMPONENTS:
            component = spec.components.get(name)
            if component is not None and own.placement(name) == "triton":
                placed = Placed(f"{checkpoint}-" if i else "", component, spec, own)
                key = sharing_key(component, own, spec, checkpoint)
                found[checkpoint, name] = same.setdefault(key, placed)
    return found
