"""Samplers compiled to tables: run once on symbols, a sampler leaves one line of numbers per UNet call.

network input    c_in * x                at timestep t
kept output      h = u * x + v * m       (m: the guided network output; h: the clean latent or the noise)
next latent      x' = a * x + a1 * x_prev + b . (h_0, h_1, h_2, h_3) + n * noise
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

HISTORY = 4
COLUMNS = ("timestep", "c_in", "u", "v", "a", "a1", "b0", "b1", "b2", "b3", "n")
TIMESTEP, C_IN, U, V, A, A1, B, N = 0, 1, 2, 3, 4, 5, 6, 10

Symbol: TypeAlias = tuple[Literal["x", "h", "noise"], int]


class TraceError(ValueError):
    """A sampler that does not fit a table: not linear, or with a longer memory than a job keeps."""


class Linear:
    """A linear combination of symbols; what a latent is while a sampler is traced."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Symbol, float]) -> None:
        self.terms = terms

    def __add__(self, other: Linear) -> Linear:
        merged = dict(self.terms)
        for symbol, factor in other.terms.items():
            merged[symbol] = merged.get(symbol, 0.0) + factor
        return Linear(merged)

    def __mul__(self, factor: float) -> Linear:
        return Linear({symbol: float(value * factor) for symbol, value in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Linear:
        return self * -1.0

    def __sub__(self, other: Linear) -> Linear:
        return self + (-other)

    def __truediv__(self, divisor: float) -> Linear:
        return self * (1.0 / divisor)


@dataclass(frozen=True, slots=True)
class Level:
    """x = alpha * clean + sigma * noise. alpha is 1 in the variance-exploding frame."""

    alpha: float
    sigma: float

    @classmethod
    def preserving(cls, ratio: float) -> Level:
        """The variance-preserving level (alpha^2 + sigma^2 = 1) whose sigma / alpha is `ratio`."""
        alpha = 1 / np.sqrt(1 + ratio**2)
        return cls(float(alpha), float(alpha * ratio))


class Trace:
    """What a sampler calls while it is traced: the network, and fresh noise."""

    def __init__(self, prediction_type: str) -> None:
        self.lines: list[npt.NDArray[np.float64]] = []
        self._prediction_type = prediction_type

    def clean(self, x: Linear, level: Level, timestep: float) -> tuple[Linear, Linear]:
        """One UNet call at x: gives x under the name it has from here on, and the estimate of the clean latent."""
        squared = level.alpha**2 + level.sigma**2
        u, v = {
            "epsilon": (1 / level.alpha, -level.sigma / level.alpha),
            "v_prediction": (level.alpha / squared, -level.sigma / np.sqrt(squared)),
            "sample": (0.0, 1.0),
        }[self._prediction_type]
        if self.lines:
            self._close(x)
        elif x.terms != {("x", 0): 1.0}:
            raise TraceError("the first network call must be at the first latent")
        line = np.zeros(len(COLUMNS))
        line[[TIMESTEP, C_IN, U, V]] = timestep, 1 / np.sqrt(squared), u, v
        self.lines.append(line)
        call = len(self.lines) - 1
        return Linear({("x", call): 1.0}), Linear({("h", call): 1.0})

    def noise(self) -> Linear:
        """Fresh noise, drawn from the job's generator after this call."""
        return Linear({("noise", len(self.lines) - 1): 1.0})

    def _close(self, x: Linear) -> None:
        """Write `x`, the latent of the next call, into the last line."""
        last = len(self.lines) - 1
        line = self.lines[last]
        for (kind, index), factor in x.terms.items():
            age = last - index
            if kind == "x" and age <= 1:
                line[A + age] += factor
            elif kind == "h" and age < HISTORY:
                line[B + age] += factor
            elif kind == "noise" and age == 0:
                line[N] += factor
            elif factor != 0:
                raise TraceError(f"line {last} needs {kind} of {age} calls ago, further back than a job remembers")

    def finish(self, x: Linear) -> npt.NDArray[np.float64]:
        self._close(x)
        return np.stack(self.lines)


Sampler: TypeAlias = Callable[[Trace, Linear], Linear]


@dataclass(frozen=True, slots=True)
class Table:
    """A sampler on a schedule.

    Attributes:
        lines: (calls, len(COLUMNS)) float32, read-only.
        initial_scale: standard deviation of the first latent.
    """

    lines: npt.NDArray[np.float32]
    initial_scale: float

    @property
    def calls(self) -> int:
        """Number of UNet calls."""
        return len(self.lines)


def compile_table(sampler: Sampler, prediction_type: str, initial_scale: float) -> Table:
    """Run a sampler on symbols.

    Raises:
        TraceError: it does not fit a table.
    """
    trace = Trace(prediction_type)
    lines = trace.finish(sampler(trace, Linear({("x", 0): 1.0})))
    frozen = lines.astype(np.float32)
    frozen.setflags(write=False)
    return Table(frozen, float(initial_scale))
