"""How sure figures of a load are, from the requests of that load alone.

What differs between loads, such as what else the machine does, no interval of one of them can tell. Requests that
follow one another wait together and are late together, so they count as fewer than they are, by the spread of the
averages of `PARTS` parts of the load (batch means; Law and Carson, 1979); congestion that lasts longer than a part is
still counted too often. So all intervals are approximate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeAlias

from bench.traffic.latencies import percentile

Interval: TypeAlias = tuple[float, float]
CONFIDENCE = 0.95
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


def worth(happened: Sequence[bool]) -> float:
    """How many independent trials those in a row are worth; at most all."""
    size = len(happened) // PARTS
    share = statistics.fmean(happened) if happened else 0.0
    if size < 2 or share in (0.0, 1.0):
        return float(len(happened))
    means = [statistics.fmean(happened[i * size : (i + 1) * size]) for i in range(PARTS)]
    return len(happened) / max(1.0, statistics.variance(means) * size / (share * (1 - share)))


def percentile_interval(values: Sequence[float], share: float) -> Interval:
    """Where a percentile lies, by the order of the values (binomial); at most from the least to the greatest of them.

    Args:
        values: at least one, in order of sending.
    """
    middle = percentile(values, share)
    trials = max(1, round(worth([value <= middle for value in values])))
    low = _binomial(trials, share, (1 - CONFIDENCE) / 2) / trials
    high = (_binomial(trials, share, (1 + CONFIDENCE) / 2) + 1) / trials
    ranked = sorted(values)
    ends = math.floor(low * len(ranked)), math.ceil(round(high * len(ranked), 9))
    least, greatest = (ranked[min(max(rank, 1), len(ranked)) - 1] for rank in ends)
    return least, greatest


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
