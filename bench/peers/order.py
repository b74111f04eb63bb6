"""What a peer is asked to draw, as it goes to the peer's process; needs nothing but the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# Where Euler's method steps: of what diffusers knows, the one that all peers know, and that k-diffusion began with.
SPACING = "linspace"


class MissingPeerError(Exception):
    """A peer that cannot be here: what it says is why, and what to install or to give."""


@dataclass(frozen=True, slots=True)
class Order:
    """Pictures that are wanted together: one for each prompt, by Euler's method.

    Attributes:
        prompts, seeds: one of each for a picture.
        height, width: in pixels.
        guidance: above 1.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    height: int
    width: int

    def singles(self) -> list[Order]:
        """The same pictures, one by one."""
        pairs = zip(self.prompts, self.seeds, strict=True)
        return [replace(self, prompts=(prompt,), seeds=(seed,)) for prompt, seed in pairs]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Order:
        """From what `dataclasses.asdict` gave, through JSON."""
        return cls(**{**values, "prompts": tuple(values["prompts"]), "seeds": tuple(values["seeds"])})


@dataclass(frozen=True, slots=True)
class Setup:
    """What a peer is told before it draws.

    Attributes:
        checkpoint: a diffusers folder.
        precision: `fp32` or `bf16`, that it should compute in.
        device: `cpu` or `cuda`, where ours computes.
        threads: of the CPU.
        work: a folder to keep what it converts in; empty at first.
        height, width, guidance: of the orders that will come, for peers that are compiled for them.
    """

    checkpoint: str
    precision: str
    device: str
    threads: int
    work: str
    height: int
    width: int
    guidance: float

    def need_cpu(self, peer: str) -> None:
        """Raises MissingPeerError where ours computes elsewhere."""
        if self.device != "cpu":
            raise MissingPeerError(f"{peer} draws on the CPU here, and ours on a GPU: give --provider openvino or cpu")
