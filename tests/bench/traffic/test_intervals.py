"""Intervals hold what they say, of requests that are independent and of those that wait together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from bench.traffic.intervals import (
    MANY_EVENTS,
    can_be_told,
    percentile_interval,
    poisson_interval,
    rate_interval,
    together,
)


@pytest.mark.parametrize(("share", "least"), [(0.5, 1), (0.9, 20), (0.95, 40), (0.99, 200)])
def test_a_percentile_needs_values_beyond_it(share: float, least: int) -> None:
    assert not can_be_told(share, least - 1)
    assert can_be_told(share, least)


def independent(draw: random.Random, count: int) -> list[float]:
    return [draw.expovariate(1.0) for _ in range(count)]


def queued(draw: random.Random, count: int) -> list[float]:
    """Latencies that mostly are those of the one before: of an exponential distribution too."""
    values = [draw.expovariate(1.0)]
    while len(values) < count:
        values.append(values[-1] if draw.random() < 0.8 else draw.expovariate(1.0))
    return values


@pytest.mark.parametrize(
    ("drawn", "share", "count", "held"),
    [
        (independent, 0.5, 60, 0.93),
        (independent, 0.9, 200, 0.93),
        (independent, 0.99, 600, 0.93),
        (queued, 0.5, 400, 0.92),
        (queued, 0.9, 400, 0.9),
    ],
)
def test_the_truth_is_within_most_intervals(
    drawn: Callable[[random.Random, int], list[float]], share: float, count: int, held: float
) -> None:
    draw, truth, found = random.Random(1), -math.log(1 - share), 0
    for _ in range(150):
        low, high = percentile_interval(drawn(draw, count), share)
        assert low <= high
        found += low <= truth <= high
    assert found / 150 >= held


def test_few_values_do_not_tell_how_far_a_percentile_lies() -> None:
    assert percentile_interval([3.0], 0.5) == (-math.inf, math.inf)
    values = [float(n * 7 % 40) for n in range(40)]
    low, high = percentile_interval(values, 0.95)
    assert 30 < low < 38
    assert high == math.inf


def test_values_that_are_like_those_before_are_worth_fewer() -> None:
    draw = random.Random(0)
    assert together(independent(draw, 400)) == pytest.approx(1, abs=0.5)
    # Of autocorrelations 0.8 to the power of the lag.
    assert together(queued(draw, 4000)) == pytest.approx(9, rel=0.3)
    assert together([1.0] * 50) == together([2.0]) == together([1.0, 2.0] * 20) == 1


@pytest.mark.parametrize(
    ("count", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.39), (100, 81.36, 121.63)]
)
def test_poisson_limits_are_nearly_the_exact_ones(count: int, low: float, high: float) -> None:
    """Garwood's (1936), from the quantiles of chi squared."""
    assert poisson_interval(count) == pytest.approx((low, high), rel=0.01, abs=0.02)


def test_a_rate_of_few_events_is_as_sure_as_their_number() -> None:
    two_each = [(float(n), 2.0) for n in range(10)]
    assert rate_interval(two_each, 0.0, 10.0) == pytest.approx((2 * 4.795 / 10, 2 * 18.39 / 10), rel=0.02)
    assert rate_interval([], 0.0, 10.0) == pytest.approx((0.0, 0.3689), rel=0.01)
    assert rate_interval([], 1.0, 1.0) == (0.0, 0.0)


def test_a_steady_rate_is_surer_than_one_by_chance() -> None:
    def width(moments: list[float]) -> float:
        low, high = rate_interval([(moment, 1.0) for moment in moments], 0.0, 100.0)
        assert low <= len(moments) / 100 <= high
        return high - low

    draw = random.Random(0)
    steady = [n / 4 + 0.1 for n in range(400)]
    chance = sorted(draw.uniform(0, 100) for _ in range(400))
    bursts = [5.0 + 20 * (n // 80) + n % 80 / 100 for n in range(400)]
    assert width(steady) < 0.1 < width(chance) < width(bursts)
    poisson = poisson_interval(400)
    assert width(chance) < 3 * (poisson[1] - poisson[0]) / 100
    assert len(steady) > MANY_EVENTS
