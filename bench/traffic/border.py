"""Where the rate lies at which the share in time falls to a goal, by all trials at several rates together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# How steeply the odds of being in time fall with the rate, as powers of it: from hardly to at once.
POWERS = np.geomspace(0.5, 200.0, 48)
# Rates that are looked at, and how far beyond the lowest and the highest that were tried, as a logarithm.
RATES = 400
BEYOND = math.log(2)


class Tried(Protocol):
    """A trial: requests a second, the share in time of those that counted, and what they are worth."""

    @property
    def rate(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def worth(self) -> float: ...


def enclosed(trials: Sequence[Tried], goal: float, confidence: float) -> tuple[float, float | None]:
    """The lowest and the highest rate that may be the border; 0 and None where it may lie beyond those tried.

    The odds of being in time are taken to fall with some power of the rate, as they nearly do around the border of a
    queue; each trial weighs as many independent ones as it is worth. The border may be where the likelihood, at the
    power that suits it best, is not significantly below the greatest (Wilks, 1938). That makes the interval
    approximate.
    """
    if not trials:
        return 0.0, None
    rates = np.log([trial.rate for trial in trials])
    first, last = float(rates.min()), float(rates.max())
    borders = np.union1d(np.linspace(first - BEYOND, last + BEYOND, RATES), (first, last))
    shares, worths = (np.array([getattr(trial, name) for trial in trials]) for name in ("share", "worth"))
    odds = math.log(goal / (1 - goal)) - POWERS[:, None] * (rates - borders[:, None, None])
    likelihoods = -(worths * (shares * np.logaddexp(0, -odds) + (1 - shares) * np.logaddexp(0, odds))).sum(-1)
    best = likelihoods.max(-1)
    # Of chi squared with one degree of freedom, which is a normal one squared.
    least = best.max() - statistics.NormalDist().inv_cdf(0.5 + confidence / 2) ** 2 / 2
    may = np.flatnonzero(best >= least)

    def end(inside: int, outside: int) -> float:
        part = (best[inside] - least) / (best[inside] - best[outside])
        return float(borders[inside] + part * (borders[outside] - borders[inside]))

    low = end(may[0], may[0] - 1) if may[0] > 0 else -math.inf
    high = end(may[-1], may[-1] + 1) if may[-1] < len(borders) - 1 else math.inf
    # The curve says nothing of rates that nobody tried.
    return 0.0 if low < first else math.exp(min(low, last)), None if high > last else math.exp(max(high, first))
