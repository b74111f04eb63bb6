"""What the judge found in many pictures, as figures with the range in which chance may have put them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from bench.judging.trials import Scores
from bench.reporting.measures import Measure

# Standard deviations on both sides that hold 95 % of a normal distribution.
SIGMAS = 1.96


def gathered(scores: Sequence[Scores]) -> dict[str, list[float]]:
    """All values of each aspect."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for score in scores:
        for aspect, value in score.items():
            values[aspect].append(value)
    return values


def means(scores: Sequence[Scores]) -> dict[str, float]:
    """Of each aspect the mean over all pictures."""
    return {aspect: round(statistics.fmean(values), 4) for aspect, values in gathered(scores).items()}


def judged_measures(task: str, scores: Sequence[Scores]) -> Iterator[Measure]:
    """A figure for each aspect, with its 95 % interval over other cases of the same kind."""
    for aspect, values in gathered(scores).items():
        mean = statistics.fmean(values)
        low, high = share_interval(values) if set(values) <= {0.0, 1.0} else mean_interval(values)
        yield Measure(f"{task} {aspect}", mean, "dB" if aspect.endswith("_db") else "", "higher", low=low, high=high)


def share_interval(values: Sequence[float]) -> tuple[float, float]:
    """Wilson (1927), of values that are 0 or 1."""
    n, share, z = len(values), statistics.fmean(values), SIGMAS
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the mean, by the values' standard deviation."""
    mean = statistics.fmean(values)
    half = SIGMAS * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return mean - half, mean + half
