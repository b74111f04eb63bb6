"""Which components are Triton models of their own, and how these are called."""

from __future__ import annotations

from dataclasses import dataclass

from engines.component import Component, PipelineSpec
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


def placed_components(config: ServerConfig) -> dict[tuple[str, str], Placed]:
    """By (checkpoint, component), those that are Triton models; components whose files are equal share one.

    Raises:
        EngineError: an export folder is missing or damaged.
    """
    found: dict[tuple[str, str], Placed] = {}
    same: dict[tuple[str, str], Placed] = {}
    for i, (checkpoint, own) in enumerate(config.checkpoints().items()):
        spec = PipelineSpec.read(own.model)
        for name in COMPONENTS:
            component = spec.components.get(name)
            if component is not None and own.placement(name) == "triton":
                placed = Placed(f"{checkpoint}-" if i else "", component, spec, own)
                key = name, component.sha256 or checkpoint
                found[checkpoint, name] = same.setdefault(key, placed)
    return found
