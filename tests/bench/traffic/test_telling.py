"""A load in the words of every measurement."""

from __future__ import annotations

from bench.traffic.alone import Alone
from bench.traffic.arrivals import Bursts
from bench.traffic.asking import Outcome
from bench.traffic.mix import Asked, Kind
from bench.traffic.points import Load, Point, figures
from bench.traffic.telling import measures, plots
from bench.traffic.timelines import Watched

KIND = Kind(20, "euler", 7.5, 0, 0, 1)
ALONE = Alone({KIND: 0.1}, {KIND: 1.0})


def point(rate: float, count: int, gap: float) -> Point:
    outcomes = [
        Outcome(Asked(number, {}, KIND), "ok", gap * number, gap * number, gap * number + 0.1 + number % 5 / 100)
        for number in range(count)
    ]
    return Point(Load(None, Bursts(rate)), outcomes, Watched(), 0.0)


def test_the_load_is_told_as_it_came() -> None:
    """With 17 requests at 1.2 a second where 1 was asked for, and no percentile that would be the slowest of them."""
    found = {one.name: one for one in measures([figures(point(1.0, 17, 1 / 1.2), ALONE)], {})}
    assert (found["requests at 1/s"].value, found["offered at 1/s"].value) == (17, 1.2)
    assert found["requests at 1/s"].better is found["latency max at 1/s"].better is None
    assert {name for name in found if name.startswith("latency p")} == {"latency p50 at 1/s"}
    for name in ("latency p50 at 1/s", "throughput at 1/s", "goodput at 2x at 1/s", "failed at 1/s"):
        one = found[name]
        assert one.low is not None
        assert one.high is not None
        assert one.low <= one.value <= one.high


def test_curves_are_over_what_was_offered() -> None:
    points = [point(1.0, 17, 1 / 1.2), point(2.0, 240, 0.4)]
    reports = [figures(one, ALONE) for one in points]
    drawn = {plot.title: plot for plot in plots(points, reports)}
    assert [x for x, _ in drawn["Goodput over load"].series["all"]] == [1.2, 2.5]
    latency = drawn["Latency over throughput"].series
    assert (len(latency["p50"]), len(latency["p90"]), len(latency["p99"])) == (2, 1, 1)


def test_latency_alone_has_its_repetitions() -> None:
    (alone,) = measures([], {"20": 100.0}, {"20": [99.0, 100.0, 104.0]})
    assert (alone.value, list(alone.samples)) == (100.0, [99.0, 100.0, 104.0])


def test_a_closed_loop_is_offered_at_a_time() -> None:
    report = figures(Point(Load(8), point(1.0, 17, 1.0).outcomes, Watched(), 0.0), ALONE)
    assert report["offered"] == report["nominal"] == 8
    assert not any(one.name.startswith("offered") for one in measures([report], {}))
