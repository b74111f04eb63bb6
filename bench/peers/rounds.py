"""Ours and another in turn, so that whatever else the machine does meets both alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of each round; of both as many, at least one."""

    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Theirs over ours, round by round: more than 1 where ours is faster."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def figures(self) -> dict[str, float]:
        """Medians in milliseconds, and the median, least and largest ratio."""
        ratios = self.ratios
        return {
            "ours_ms": round(1e3 * statistics.median(self.ours), 2),
            "theirs_ms": round(1e3 * statistics.median(self.theirs), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_least": round(min(ratios), 3),
            "ratio_largest": round(max(ratios), 3),
        }


def interleaved(ours: Callable[[int], float], theirs: Callable[[int], float], rounds: int) -> Iterator[Rounds]:
    """Rounds of calls that are given the round's number and give seconds; who begins changes from round to round.

    Yields:
        All rounds so far, after each: whoever is interrupted has those that were whole.
    """
    seconds: tuple[list[float], list[float]] = [], []
    for number in range(rounds):
        turns = [(seconds[0], ours), (seconds[1], theirs)]
        for kept, call in turns if number % 2 == 0 else reversed(turns):
            kept.append(call(number))
        yield Rounds(*map(tuple, seconds))
