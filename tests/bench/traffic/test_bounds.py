"""Each figure of a load has its interval."""

from __future__ import annotations

import pytest

from bench.traffic.asking import Outcome, Status
from bench.traffic.bounds import bounds, in_time_of
from bench.traffic.mix import Asked, Kind

KIND = Kind(20, "euler", 7.5, 0, 0, 1)


def outcome(number: int, seconds: float, status: Status = "ok", malformed: bool = False) -> Outcome:
    return Outcome(Asked(number, {}, KIND, malformed=malformed), status, number / 4, number / 4, number / 4 + seconds)


def test_every_figure_lies_within_its_interval() -> None:
    outcomes = [outcome(number, 0.1 + number % 7 / 10) for number in range(80)]
    found = bounds(outcomes, lambda asked: 0.2, slo_ms=350)
    seconds = max(o.ended for o in outcomes)
    low, high = found["throughput"]
    assert low < 80 / seconds < high < 6
    in_time = sum(o.seconds <= 0.35 for o in outcomes)
    for name, served in (("goodput at 1.5x", sum(o.seconds <= 0.3 for o in outcomes)), ("goodput in 350 ms", in_time)):
        low, high = found[name]
        assert low < served / seconds < high
    low, high = found["share in 350 ms"]
    assert low < in_time / 80 < high
    assert found["latency p50"][0] <= 400 <= found["latency p50"][1]
    assert found["failed"] == pytest.approx((0, 0.0458), abs=0.001)


def test_only_percentiles_that_so_many_requests_tell_are_there() -> None:
    found = bounds([outcome(number, 0.1) for number in range(60)], lambda asked: 1.0)
    told = {name for name in found if name.startswith("latency")}
    assert told == {"latency p50", "latency p90", "latency p95"}
    assert not any(name.startswith("first preview") for name in found)
    assert "latency p99" in bounds([outcome(number, 0.1) for number in range(200)], lambda asked: 1.0)


def test_what_its_client_left_and_what_is_malformed_has_no_limit() -> None:
    outcomes = [outcome(0, 0.1), outcome(1, 0.9), outcome(2, 0.1, "left"), outcome(3, 0.1, "invalid", malformed=True)]
    assert in_time_of(outcomes, 500) == [True, False]
    assert bounds([], lambda asked: 1.0)["throughput"] == (0.0, 0.0)
