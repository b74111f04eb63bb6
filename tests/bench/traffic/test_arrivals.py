"""When requests come."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from bench.traffic.arrivals import Bursts, Ramp, Trace, poisson_times
from server.errors import ServerError


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in zip([0.0, *times], times, strict=False)]


def test_arrivals_are_the_same_for_a_seed_and_have_their_rate() -> None:
    times = poisson_times(50, 3, count=5000)
    assert times == poisson_times(50, 3, count=5000) != poisson_times(50, 4, count=5000)
    assert times == sorted(times)
    assert statistics.mean(gaps(times)) == pytest.approx(1 / 50, rel=0.05)
    # Of an exponential distribution, the share below the mean is 1 - 1/e.
    assert statistics.mean(gap < 1 / 50 for gap in gaps(times)) == pytest.approx(0.632, abs=0.03)


@pytest.mark.parametrize("variation", [0.3, 3.0])
def test_bursts_keep_the_rate_and_have_their_variation(variation: float) -> None:
    between = gaps(Bursts(20, variation).times(1, count=20_000))
    assert statistics.mean(between) == pytest.approx(1 / 20, rel=0.06)
    assert statistics.stdev(between) / statistics.mean(between) == pytest.approx(variation, rel=0.06)


@pytest.mark.parametrize(("begin", "end"), [(2, 18), (18, 2), (10, 10)])
def test_a_ramp_goes_evenly_from_rate_to_rate(begin: float, end: float) -> None:
    times = Ramp(begin, end, 400).times(5)
    assert times == sorted(times)
    assert max(times) <= 400
    assert len(times) == pytest.approx(4000, rel=0.06)
    first_tenth = sum(moment < 40 for moment in times)
    assert first_tenth == pytest.approx(40 * (begin + 0.05 * (end - begin)), rel=0.2)


def test_arrivals_end_by_count_or_by_time() -> None:
    assert max(poisson_times(100, 0, seconds=2.0)) < 2.0
    assert len(poisson_times(100, 0, count=7, seconds=2.0)) == 7
    assert len(Ramp(1, 9, 100).times(0, count=7)) == 7
    assert max(Ramp(1, 9, 100).times(0, seconds=10)) < 10
    with pytest.raises(ValueError, match="without end"):
        poisson_times(100, 0)


def test_a_trace_is_played_as_quick_as_it_is_told() -> None:
    trace = Trace("day.csv", (0.0, 1.0, 4.0), speed=2.0)
    assert trace.times(0) == [0.0, 0.5, 2.0]
    assert trace.times(0, count=2) == trace.times(9, seconds=1.0) == [0.0, 0.5]
    # Two gaps in two seconds.
    assert trace.rate == 1.0
    assert Trace("one.csv", (0.0,)).rate == 1.0


@pytest.mark.parametrize(
    "made",
    [
        lambda: Bursts(0),
        lambda: Bursts(-1),
        lambda: Bursts(float("inf")),
        lambda: Bursts(float("nan")),
        lambda: Bursts(1, 0),
        lambda: Ramp(0, 1, 1),
        lambda: Ramp(1, 1, 0),
        lambda: Trace("x", (0.0,), speed=0),
    ],
)
def test_what_never_comes_is_refused(made: Callable[[], object]) -> None:
    with pytest.raises(ServerError, match="give a number above 0"):
        made()
