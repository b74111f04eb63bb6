"""What one value of each request is drawn from: values as likely as each other, weighted ones, or a range."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

Item = TypeVar("Item")
Number = TypeVar("Number", int, float)
# Digits of a number that is drawn from a range, so that a request can be read and sent again.
DIGITS = 3


@dataclass(frozen=True, slots=True)
class Weighted(Generic[Item]):
    """Values, each as likely as its weight is of all weights."""

    values: tuple[Item, ...]
    weights: tuple[float, ...]

    def draw(self, draw: random.Random) -> Item:
        return draw.choices(self.values, self.weights)[0]


@dataclass(frozen=True, slots=True)
class Between(Generic[Number]):
    """Numbers of a range, ends included; whole ones between whole ends."""

    low: Number
    high: Number

    def draw(self, draw: random.Random) -> Number:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return draw.randint(self.low, self.high)
        return round(draw.uniform(self.low, self.high), DIGITS)


Spread: TypeAlias = Sequence[Item] | Weighted[Item]
Numbers: TypeAlias = Sequence[Number] | Weighted[Number] | Between[Number]


def drawn(spread: Spread[Item], draw: random.Random) -> Item:
    """A value of a spread."""
    return spread.draw(draw) if isinstance(spread, Weighted) else draw.choice(spread)


def number(spread: Numbers[Number], draw: random.Random) -> Number:
    """A number of a spread that may be a range."""
    return spread.draw(draw) if isinstance(spread, Weighted | Between) else draw.choice(spread)


def some(spread: Spread[Item]) -> Sequence[Item]:
    """The values that may be drawn."""
    return spread.values if isinstance(spread, Weighted) else spread
