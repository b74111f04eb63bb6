"""Figures from lists of seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

SHARES = (0.5, 0.9, 0.95, 0.99)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so great a share of them does not exceed (nearest rank).

    Raises:
        ValueError: there are none, or the share is not within 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    # A share such as 0.95 is a little more than 95 / 100, and so is its product with a count.
    rank = math.ceil(round(share * len(values), 9))
    return sorted(values)[max(1, rank) - 1]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Count, mean, percentiles and extremes in milliseconds; only the count of none."""
    if not seconds:
        return {"count": 0}
    named = {f"p{100 * share:g}": 1e3 * percentile(seconds, share) for share in SHARES}
    ends = {"min": 1e3 * min(seconds), "max": 1e3 * max(seconds)}
    figures = {"mean": 1e3 * statistics.mean(seconds), **named, **ends}
    return {"count": len(seconds), **{name: round(value, 3) for name, value in figures.items()}}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line that fits (x, y) best; 0 for fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope
