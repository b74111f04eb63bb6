"""Figures of a load whose outcomes are given."""

from __future__ import annotations

from dataclasses import replace

from bench.traffic.alone import Alone
from bench.traffic.arrivals import Bursts
from bench.traffic.asking import Outcome, Status
from bench.traffic.mix import Asked, Kind
from bench.traffic.points import KEPT, Load, Point, failures, figures
from bench.traffic.telling import measures
from bench.traffic.timelines import Watched

KIND = Kind(20, "euler", 7.5, 0, 0, 1)


def point(*statuses: Status, malformed: bool = False) -> Point:
    outcomes = [
        Outcome(Asked(number, {}, KIND, malformed=malformed), status, 0.0, 0.0, 0.1 * (number + 1), "words")
        for number, status in enumerate(statuses)
    ]
    return Point(Load(slo_ms=150), outcomes, Watched(), 0.0)


def test_requests_that_a_server_finds_invalid_and_are_not_have_failed() -> None:
    report = figures(point("ok", "invalid", "ok", "refused"), Alone({KIND: 0.1}, {KIND: 1.0}))
    assert report["failed"] == 1
    assert report["slo"]["share"] == 0.25
    told = {measure.name: measure.value for measure in measures([report], {})}
    assert told["failed at 16 at a time"] == told["refused or expired at 16 at a time"] == 0.25
    assert failures([], [report]) == [f"16 at a time: {report['unaccounted'][0]}"]


def test_malformed_requests_that_are_refused_have_not_failed() -> None:
    report = figures(point("invalid", "invalid", malformed=True), Alone({KIND: 0.1}, {KIND: 1.0}))
    assert (report["failed"], report["unaccounted"]) == (0, [])


def test_of_many_failures_some_are_told_and_all_are_counted() -> None:
    lost: list[Status] = ["lost"] * (KEPT + 5)
    report = figures(point(*lost), Alone({KIND: 0.1}, {KIND: 1.0}))
    assert (report["failed"], len(report["unaccounted"])) == (KEPT + 5, KEPT)
    assert failures([], [report])[-1] == "16 at a time: and 5 more"


def test_what_had_no_outcome_at_the_end_is_told() -> None:
    """Of a load that ended early by its number; of one that did not, every request is one that failed."""
    whole = point("ok", "ok")
    whole.unfinished = [(Asked(7, {}, KIND), 0.4), (Asked(8, {}, KIND), 0.5)]
    report = figures(whole, Alone({KIND: 0.1}, {KIND: 1.0}))
    assert (report["sent"], report["unfinished"], report["failed"]) == (4, 2, 2)
    assert report["unaccounted"] == ["request 7 has 0 outcomes", "request 8 has 0 outcomes"]
    whole.reason = "interrupted"
    report = figures(whole, Alone({KIND: 0.1}, {KIND: 1.0}))
    assert (report["sent"], report["unfinished"], report["failed"]) == (4, 2, 0)
    assert "2 of 4 requests had no outcome when the load ended" in failures([whole], [report])[1]


def test_a_load_is_offered_as_it_was_due() -> None:
    late = point("ok", "ok", "ok")
    late.load = Load(None, Bursts(3.0))
    assert late.offered == 3.0
    late.unfinished = [(Asked(7, {}, KIND), 0.5)]
    assert late.offered == 3 / 0.5
    assert late.load.offered == 3.0


def test_answers_from_a_cache_are_a_failure() -> None:
    kept = point("ok", "ok")
    kept.outcomes = [replace(outcome, cached=True) for outcome in kept.outcomes]
    (sentence,) = failures([kept], [figures(kept, Alone({KIND: 0.1}, {KIND: 1.0}))])
    assert sentence.startswith("16 at a time: 2 answers came from the server's response cache")
