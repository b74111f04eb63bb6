"""What a load amounts to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.traffic import tally
from bench.traffic.asking import Outcome, Status
from bench.traffic.mix import Asked, Kind, Mix

KIND = Kind(20, "euler", 7.5, 128, 128, 1)


def outcome(number: int, seconds: float, status: Status = "ok", steps: int = 20, intended: float = 0.0) -> Outcome:
    asked = Asked(number, {}, KIND._replace(steps=steps))
    return Outcome(asked, status, intended, intended + 0.001, intended + seconds)


def test_goodput_counts_what_was_in_time_for_its_steps() -> None:
    alone = {20: 1.0, 4: 0.2}
    outcomes = [
        outcome(0, 1.4),
        outcome(1, 1.6),
        outcome(2, 4.9),
        outcome(3, 0.3, steps=4),
        outcome(4, 0.5, steps=4),
        outcome(5, 0.1, status="refused"),
        outcome(6, 10.0, status="expired"),
    ]
    assert tally.span(outcomes) == 10.0
    assert tally.goodputs(outcomes, lambda asked: alone[asked.kind.steps]) == {
        "1.5x": 0.2,
        "2x": 0.3,
        "3x": 0.4,
        "4x": 0.4,
        "5x": 0.5,
    }
    assert tally.images_per_second(outcomes) == 0.5
    assert tally.latencies(outcomes)["refused"]["p50"] == 100.0
    assert {steps: figures["count"] for steps, figures in tally.by_steps(outcomes).items()} == {"4": 2, "20": 3}


def test_no_outcomes_have_no_goodput() -> None:
    assert tally.images_per_second([]) == tally.goodput([], lambda asked: 2.0) == 0.0


def test_every_request_has_exactly_one_outcome() -> None:
    asked = [Mix().asked(number) for number in range(4)]
    done = [Outcome(one, "ok", 0.0, 0.0, 1.0) for one in asked]
    assert tally.unaccounted(asked, done) == []
    assert tally.unaccounted(asked, done[:3]) == ["request 3 has 0 outcomes"]
    assert tally.unaccounted(asked, [*done, done[1]]) == ["request 1 has 2 outcomes"]
    assert tally.unaccounted(asked[:3], done) == ["request 3 was never asked"]


@pytest.mark.parametrize(
    ("changes", "status", "broken", "fine"),
    [
        ({}, "ok", False, True),
        ({}, "lost", True, False),
        ({}, "wrong", True, False),
        ({}, "error", True, False),
        ({}, "cancelled", False, False),
        ({}, "disconnected", False, False),
        ({}, "disconnected", True, True),
        ({"malformed": True}, "invalid", False, True),
        ({"malformed": True}, "ok", False, False),
        ({"ending": "id"}, "cancelled", False, True),
        ({"ending": "id"}, "ok", False, True),
        ({"ending": "close"}, "left", False, True),
        ({"ending": "close"}, "cancelled", False, False),
        ({"fields": {"timeout_ms": 5}}, "expired", False, True),
        ({"fields": {}}, "expired", False, False),
    ],
)
def test_what_may_become_of_a_request(changes: dict[str, Any], status: Status, broken: bool, fine: bool) -> None:
    asked = replace(Mix().asked(0), **changes)
    wrong = tally.unaccounted([asked], [Outcome(asked, status, 0.0, 0.0, 1.0)], broken=broken)
    assert (wrong == []) == fine


def test_how_many_were_open_at_once() -> None:
    assert tally.open_at_most([outcome(0, 1.0), outcome(1, 3.0, intended=0.5), outcome(2, 1.0, intended=2.0)]) == 2
    assert tally.open_at_most([]) == 0
