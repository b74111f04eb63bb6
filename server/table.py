"""Samplers compiled to tables: run once on symbols, a sampler leaves one line of numbers per UNet call.

network input    c_in * x                at timestep t
kept output      h = u * x + v * m       (m: the guided network output; h: the clean latent, the noise, or m itself)
next latent      x' = a * x + a1 * x_prev + b . (h_0, h_1, h_2, h_3) + n * noise
clean latent     p * x + q * m           (the estimate after this call, which previews show)
noised picture   alpha * z + sigma * e   (a clean latent z brought to the level of this call with noise e: `levels`)

A sampler may use older latents, outputs and noise than a job keeps: a line that once used them is solved for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

HISTORY = 4
# More substitutions than any method needs that fits at all.
RECALLS = 16
COLUMNS = ("timestep", "c_in", "u", "v", "a", "a1", "b0", "b1", "b2", "b3", "n", "p", "q")
TIMESTEP, C_IN, U, V, A, A1, B, N, P, Q = 0, 1, 2, 3, 4, 5, 6, 10, 11, 12
# What is added to the columns when a table is done: x' = FUSED_X * x + FUSED_M * m before older terms and noise, and
# whether a later line needs this call's latent, or its output.
FUSED_X, FUSED_M, KEEPS_X, KEEPS_H = 13, 14, 15, 16

Symbol: TypeAlias = tuple[Literal["x", "h", "noise"], int]
COLUMN = {"x": A, "h": B, "noise": N}
NOTHING = (0.0,) * (P - A)
# For how many calls, the present one included, a job has each.
MEMORY = {"x": 2, "h": HISTORY, "noise": 1}
# (alpha, sigma) of a result.
CLEAN = (1.0, 0.0)


class TraceError(ValueError):
    """A sampler that does not fit a table: not linear, or with a longer memory than a job keeps."""


class Linear:
    """A linear combination of symbols; what a latent is while a sampler is traced."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Symbol, float]) -> None:
        self.terms = terms

    def __add__(self, other: Linear) -> Linear:
        merged = self.terms.copy()
        for symbol, factor in other.terms.items():
            merged[symbol] = merged.get(symbol, 0.0) + factor
        return Linear(merged)

    def __mul__(self, factor: float) -> Linear:
        number = float(factor)
        return Linear({symbol: value * number for symbol, value in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Linear:
        return self * -1.0

    def __sub__(self, other: Linear) -> Linear:
        merged = self.terms.copy()
        for symbol, factor in other.terms.items():
            merged[symbol] = merged.get(symbol, 0.0) - factor
        return Linear(merged)

    def __truediv__(self, divisor: float) -> Linear:
        return self * (1.0 / divisor)

    @classmethod
    def weighted(cls, parts: Iterable[tuple[Linear, float]]) -> Linear:
        """The sum of combinations, each times a number; quicker than one after the other."""
        merged: dict[Symbol, float] = {}
        for part, weight in parts:
            for symbol, factor in part.terms.items():
                merged[symbol] = merged.get(symbol, 0.0) + factor * weight
        return cls(merged)


@dataclass(frozen=True, slots=True)
class Level:
    """x = alpha * clean + sigma * noise. alpha is 1 in the variance-exploding frame."""

    alpha: float
    sigma: float

    @classmethod
    def preserving(cls, ratio: float) -> Level:
        """The variance-preserving level (alpha^2 + sigma^2 = 1) whose sigma / alpha is `ratio`."""
        alpha = 1 / math.hypot(1, ratio)
        return cls(alpha, alpha * ratio)

    @classmethod
    def at(cls, abar: float) -> Level:
        """The variance-preserving level whose signal keeps this part of the variance."""
        return cls(math.sqrt(abar), math.sqrt(1 - abar))

    @property
    def ratio(self) -> float:
        """Noise per unit of signal."""
        return self.sigma / self.alpha


class Trace:
    """What a sampler calls while it is traced: the network, and fresh noise."""

    def __init__(self, prediction_type: str) -> None:
        self.lines: list[list[float]] = []
        self.drawn: set[int] = set()
        self.levels: list[tuple[float, float]] = []
        self.recalls = False
        self._prediction_type = prediction_type
        self._written: list[dict[Symbol, float]] = []

    def clean(self, x: Linear, level: Level, timestep: float) -> tuple[Linear, Linear]:
        """One UNet call at x: gives x under the name it has from here on, and the estimate of the clean latent."""
        return self._call(x, level, timestep, *self._to_clean(level))

    def epsilon(self, x: Linear, level: Level, timestep: float) -> tuple[Linear, Linear]:
        """As `clean`, but gives and keeps the estimate of the noise."""
        u, v = self._to_clean(level)
        return self._call(x, level, timestep, (1 - level.alpha * u) / level.sigma, -level.alpha * v / level.sigma)

    def raw(self, x: Linear, level: Level, timestep: float, told: Level | None = None) -> tuple[Linear, Linear]:
        """As `clean`, but gives and keeps the network's output itself.

        `told` is the level of the timestep that the network is told, where x is only near to it.
        """
        named = self._call(x, level, timestep, 0.0, 1.0)
        if told:
            self.levels[-1] = (told.alpha, told.sigma)
        return named

    def to_clean(self, x: Linear, raw: Linear, level: Level) -> Linear:
        """The clean latent that a raw output, or an average of several, says is in x."""
        u, v = self._to_clean(level)
        return x * u + raw * v

    def noise(self) -> Linear:
        """Fresh noise, drawn from the job's generator after this call; drawn even where a level leaves none of it."""
        last = len(self.lines) - 1
        if last < 0:
            raise TraceError("noise is drawn before the first network call; the first latent has its own")
        self.drawn.add(last)
        return Linear({("noise", last): 1.0})

    def finish(self, x: Linear) -> npt.NDArray[np.float64]:
        self._close(x)
        return np.array(self.lines, np.float64)

    def _to_clean(self, level: Level) -> tuple[float, float]:
        squared = level.alpha**2 + level.sigma**2
        if self._prediction_type == "epsilon":
            return 1 / level.alpha, -level.sigma / level.alpha
        if self._prediction_type == "v_prediction":
            return level.alpha / squared, -level.sigma / math.sqrt(squared)
        return 0.0, 1.0

    def _call(self, x: Linear, level: Level, timestep: float, u: float, v: float) -> tuple[Linear, Linear]:
        if self.lines:
            self._close(x)
        elif x.terms != {("x", 0): 1.0}:
            raise TraceError("the first network call must be at the first latent")
        call = len(self.lines)
        c_in = 1 / math.hypot(level.alpha, level.sigma)
        self.lines.append([timestep, c_in, u, v, *NOTHING, *self._to_clean(level)])
        self.levels.append((level.alpha, level.sigma))
        return Linear({("x", call): 1.0}), Linear({("h", call): 1.0})

    def _close(self, x: Linear) -> None:
        """Write `x`, the latent of the next call, into the last line."""
        last = len(self.lines) - 1
        line = self.lines[last]
        terms = self._remembered(x)
        self._written.append(terms)
        for (kind, index), factor in terms.items():
            line[COLUMN[kind] + last - index] = factor

    def _remembered(self, x: Linear) -> dict[Symbol, float]:
        """`x` in terms of what a job still has at the last line."""
        last = len(self.lines) - 1
        for _ in range(RECALLS):
            terms = {symbol: factor for symbol, factor in x.terms.items() if factor != 0}
            old = [symbol for symbol in terms if last - symbol[1] >= MEMORY[symbol[0]]]
            if not old:
                return terms
            self.recalls = True
            oldest = min(old, key=lambda symbol: symbol[1])
            factor = terms.pop(oldest)
            x = Linear.weighted([(Linear(terms), 1.0), (self._recall(oldest), factor)])
        raise TraceError(f"line {last} needs what a job no longer has, and no earlier line gives it back")

    def _recall(self, symbol: Symbol) -> Linear:
        """What a job no longer has, from the last line that used it while it had it."""
        kind, index = symbol
        for line in range(min(index + MEMORY[kind], len(self._written)) - 1, index - 1, -1):
            factor = self._written[line].get(symbol)
            if factor:
                found = {s: f / -factor for s, f in self._written[line].items() if s != symbol}
                found["x", line + 1] = 1 / factor
                return Linear(found)
        raise TraceError(f"{kind} of call {index} is needed, but no line that could give it back has used it")


Sampler: TypeAlias = Callable[[Trace, Linear], Linear]


@dataclass(frozen=True, slots=True)
class Table:
    """A sampler on a schedule.

    Attributes:
        lines: (calls, len(COLUMNS)) float32, read-only.
        initial_scale: standard deviation of the first latent.
        draws: whether each call is followed by a draw from the job's generator.
        moves: (calls, len(COLUMNS) + 4) float32: the lines, and what is added to them.
        levels: (calls + 1, 2) float32, read-only: (alpha, sigma) of the latent that each call is made at, in the
            sampler's own frame, and of the result, (1, 0). `levels[0]` makes a picture's first latent of it and
            noise; `levels[i + 1]` makes what a known region holds after call i.
        recalls: whether a line reads back what a job no longer keeps from a latent that it led to. If that latent was
            changed meanwhile, the line goes on as if the change had been there all along.
    """

    lines: npt.NDArray[np.float32]
    initial_scale: float
    draws: tuple[bool, ...]
    moves: npt.NDArray[np.float32]
    levels: npt.NDArray[np.float32]
    recalls: bool

    @classmethod
    def of(
        cls,
        lines: npt.NDArray[np.float64],
        initial_scale: float,
        drawn: Collection[int],
        *,
        levels: Sequence[tuple[float, float]] = (),
        recalls: bool = False,
    ) -> Table:
        """A table of these lines.

        Args:
            drawn: the calls that a draw follows.
            levels: (alpha, sigma) of each call; where none are given, no call has noise in its latent.
        """
        calls = len(lines)
        older = np.zeros((calls + HISTORY, HISTORY), np.bool_)
        older[:calls] = lines[:, [A1, B + 1, B + 2, B + 3]] != 0
        moves = np.empty((calls, len(COLUMNS) + 4), np.float32)
        moves[:, : len(COLUMNS)] = lines
        moves[:, FUSED_X] = lines[:, A] + lines[:, B] * lines[:, U]
        moves[:, FUSED_M] = lines[:, B] * lines[:, V]
        moves[:, KEEPS_X] = older[1 : 1 + calls, 0]
        moves[:, KEEPS_H] = older[1 : 1 + calls, 1] | older[2 : 2 + calls, 2] | older[3 : 3 + calls, 3]
        return cls(
            lines=_frozen(lines.astype(np.float32)),
            initial_scale=initial_scale,
            draws=tuple(call in drawn for call in range(calls)),
            moves=_frozen(moves),
            levels=_frozen(np.array([*(levels or [CLEAN] * calls), CLEAN], np.float32)),
            recalls=recalls,
        )

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
    if not np.isfinite(lines).all():
        raise TraceError("a coefficient is not finite")
    return Table.of(lines, float(initial_scale), trace.drawn, levels=trace.levels, recalls=trace.recalls)


def _frozen(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    values.setflags(write=False)
    return values
