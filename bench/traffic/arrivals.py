"""When the requests of an open loop come: at random, in bursts, more and more often, or as they were recorded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from bench.traffic.mix import Given
from server.errors import ServerError


class Arrivals(Protocol):
    """A way in which requests come."""

    @property
    def label(self) -> str:
        """In a few words, to name a point of a sweep."""

    @property
    def rate(self) -> float:
        """Mean requests a second."""

    def times(self, seed: int, *, count: int | None = None, seconds: float | None = None) -> list[float]:
        """Seconds from the start, ascending, until so many have come or so long has passed."""

    def given(self) -> tuple[Given, ...]:
        """What is recorded of the requests, in the same order; empty where nothing is."""


@dataclass(frozen=True, slots=True)
class Bursts:
    """Gaps with a gamma distribution.

    Attributes:
        rate: a second.
        variation: deviation of the gaps over their mean: 1 is Poisson, more comes in bursts, less more evenly.
    """

    rate: float
    variation: float = 1.0

    def __post_init__(self) -> None:
        _positive("rate", self.rate)
        _positive("coefficient of variation", self.variation)

    @property
    def label(self) -> str:
        return f"{self.rate:g}/s" if self.variation == 1 else f"{self.rate:g}/s cv {self.variation:g}"

    def times(self, seed: int, *, count: int | None = None, seconds: float | None = None) -> list[float]:
        draw = random.Random(seed)
        if self.variation == 1:
            return _taken(lambda: draw.expovariate(self.rate), count, seconds)
        shape = self.variation**-2
        return _taken(lambda: draw.gammavariate(shape, 1 / (shape * self.rate)), count, seconds)

    def given(self) -> tuple[Given, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Ramp:
    """At random, with a rate that changes evenly from one to another, and ends there."""

    begin: float
    end: float
    seconds: float

    def __post_init__(self) -> None:
        for name, value in (("first rate", self.begin), ("last rate", self.end), ("ramp's seconds", self.seconds)):
            _positive(name, value)

    @property
    def label(self) -> str:
        return f"{self.begin:g} to {self.end:g}/s in {self.seconds:g} s"

    @property
    def rate(self) -> float:
        return (self.begin + self.end) / 2

    def times(self, seed: int, *, count: int | None = None, seconds: float | None = None) -> list[float]:
        """A Poisson process of rate 1, whose clock runs at the ramp's rate (time change by the integral)."""
        draw = random.Random(seed)
        due = _taken(lambda: draw.expovariate(1.0), count, self._expected(min(seconds or math.inf, self.seconds)))
        return [self._when(number) for number in due]

    def given(self) -> tuple[Given, ...]:
        return ()

    def _expected(self, seconds: float) -> float:
        """Requests by then: the integral of the rate."""
        return self.begin * seconds + (self.end - self.begin) / self.seconds * seconds**2 / 2

    def _when(self, expected: float) -> float:
        """The inverse of `_expected`, in the form that holds for an even rate too."""
        slope = (self.end - self.begin) / self.seconds
        return 2 * expected / (self.begin + math.sqrt(max(0.0, self.begin**2 + 2 * slope * expected)))


@dataclass(frozen=True, slots=True)
class Trace:
    """As recorded.

    Attributes:
        name: of its file.
        moments: seconds from the first request on, ascending.
        recorded: what each request was like.
        speed: how many times as quick it is played.
    """

    name: str
    moments: tuple[float, ...]
    recorded: tuple[Given, ...] = field(default=(), repr=False)
    speed: float = 1.0

    def __post_init__(self) -> None:
        _positive("speed", self.speed)

    @property
    def label(self) -> str:
        return self.name if self.speed == 1 else f"{self.name} {self.speed:g}x"

    @property
    def rate(self) -> float:
        gaps = len(self.moments) - 1
        return self.speed * gaps / self.moments[-1] if self.moments[-1] else float(len(self.moments))

    def times(self, seed: int, *, count: int | None = None, seconds: float | None = None) -> list[float]:
        due = [moment / self.speed for moment in self.moments[:count]]
        return [moment for moment in due if seconds is None or moment < seconds]

    def given(self) -> tuple[Given, ...]:
        return self.recorded


def poisson_times(rate: float, seed: int, *, count: int | None = None, seconds: float | None = None) -> list[float]:
    """When requests come that arrive at random with a mean rate: seconds from the start, ascending.

    Args:
        rate: a second.
        count, seconds: where to end; at least one of them.
    """
    return Bursts(rate).times(seed, count=count, seconds=seconds)


def _taken(gap: Callable[[], float], count: int | None, seconds: float | None) -> list[float]:
    if count is None and seconds is None:
        raise ValueError("arrivals without end: give a count or seconds")

    def moments() -> Iterator[float]:
        now, number = gap(), 0
        while (count is None or number < count) and (seconds is None or now < seconds):
            yield now
            now, number = now + gap(), number + 1

    return list(moments())


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ServerError(f"the {name} of arrivals is {value:g}: give a number above 0")
