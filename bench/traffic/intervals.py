"""How sure figures of a load are, from the requests of that load alone.

What differs between loads, such as what else the machine does, no interval of one of them can tell. Requests that
follow one another wait together and are late together, so they count as fewer than they are: by the autocorrelation
of their ranks, or where only a yes or a no is known, by the spread of the averages of parts (`bisection.by_spread`).
Congestion that lasts for much of a load is still counted too often, so all are approximate: of 60 simulated queues
of 200 requests (one server, Poisson arrivals), intervals of p50 to p99 held the truth in 92 to 100 % at 50 % and at
80 % of the capacity; at 90 % of it that of p50 did in 83 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from bench.traffic.bisection import CONFIDENCE

Interval: TypeAlias = tuple[float, float]
Z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
# Of a load; Student's t of so many averages, at `CONFIDENCE`.
PARTS, T = 10, 2.262
# Values beyond a percentile without which it is not told: it would be the greatest of them, or nearly.
BEYOND = 2
# Events of which the spread over time says more than Poisson's, which is that of events without a memory.
MANY_EVENTS = 50
# Deviations from its mean that a binomial count is looked for in.
REACH = 9


def can_be_told(share: float, count: int) -> bool:
    """Whether so many values have that percentile: p90 from 20 on, p95 from 40, p99 from 200."""
    return count > 0 and (share <= 0.5 or round(count * (1 - share), 9) >= BEYOND)


def together(values: Sequence[float]) -> float:
    """How many that follow one another are worth one: the sum of the autocorrelations of their ranks.

    Args:
        values: at least one, in order of sending.
    """
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    spectrum = np.fft.rfft(ranks - ranks.mean(), 2 * len(ranks))
    products = np.fft.irfft(spectrum * spectrum.conj())[: len(ranks) // 2 + 1]
    if len(counts) == 1:
        return 1.0
    positive = np.flatnonzero(products <= 0)
    # Beyond the first that is none, there is only noise to be added up.
    last = int(positive[0]) if len(positive) else len(products)
    return float(1 + 2 * products[1:last].sum() / products[0])


def percentile_interval(values: Sequence[float], share: float) -> Interval:
    """Where a percentile lies, by the order of the values (binomial); infinite where they do not reach so far.

    Args:
        values: at least one, in order of sending.
    """
    # What they are worth is an estimate too, which Student's t makes up for.
    trials = max(1, round(len(values) / together(values) / (T / Z) ** 2))
    low = _binomial(trials, share, (1 - CONFIDENCE) / 2) / trials
    high = (_binomial(trials, share, (1 + CONFIDENCE) / 2) + 1) / trials
    ranked = sorted(values)
    first, last = math.floor(round(low * len(ranked), 9)), math.ceil(round(high * len(ranked), 9))
    return ranked[first - 1] if first else -math.inf, ranked[last - 1] if last <= len(ranked) else math.inf


def _binomial(trials: int, share: float, part: float) -> int:
    """The smallest number of successes that is not exceeded with a probability of `part` at least."""
    mean, reach = trials * share, REACH * math.sqrt(trials * share * (1 - share)) + REACH
    below = 0.0
    most = min(trials, math.ceil(mean + reach))
    for count in range(max(0, math.floor(mean - reach)), most):
        ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        below += math.exp(ways + count * math.log(share) + (trials - count) * math.log1p(-share))
        if below >= part:
            return count
    return most


def poisson_interval(count: int) -> Interval:
    """Where the mean of a count lies that was seen once (exact to 0.02 or 1 %; Wilson and Hilferty, 1931)."""

    def limit(number: int, z: float) -> float:
        return number * max(0.0, 1 - 1 / (9 * number) + z / (3 * math.sqrt(number))) ** 3 if number else 0.0

    return limit(count, -Z), limit(count + 1, Z)


def rate_interval(events: Sequence[tuple[float, float]], begun: float, ended: float) -> Interval:
    """Where a sum a second lies of (moment, amount), over a time: by its parts, or of few events by their number."""
    seconds, amount = ended - begun, sum(amount for _, amount in events)
    if seconds <= 0:
        return 0.0, 0.0
    if len(events) < MANY_EVENTS:
        each = amount / len(events) if events else 1.0
        low, high = poisson_interval(len(events))
        return low * each / seconds, high * each / seconds
    parts = [0.0] * PARTS
    for moment, own in events:
        parts[min(PARTS - 1, max(0, int(PARTS * (moment - begun) / seconds)))] += own
    reach = T * statistics.stdev(parts) * math.sqrt(PARTS)
    return max(0.0, amount - reach) / seconds, (amount + reach) / seconds
