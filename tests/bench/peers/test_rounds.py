"""Ours and another in turn."""

import pytest

from bench.peers.rounds import Rounds, interleaved
from bench.peers.unet import compared


def test_who_begins_changes_from_round_to_round() -> None:
    order: list[str] = []

    def call(name: str, seconds: float, number: int) -> float:
        order.append(f"{name}{number}")
        return seconds

    *_, rounds = interleaved(lambda n: call("o", 2.0, n), lambda n: call("t", 3.0, n), 3)
    assert order == ["o0", "t0", "t1", "o1", "o2", "t2"]
    assert (rounds.ours, rounds.theirs) == ((2.0,) * 3, (3.0,) * 3)
    assert rounds.ratios == [1.5] * 3


def test_whoever_is_interrupted_has_the_rounds_that_were_whole() -> None:
    def theirs(number: int) -> float:
        if number == 2:
            raise KeyboardInterrupt
        return 3.0

    rounds = interleaved(lambda _: 2.0, theirs, 5)
    assert [next(rounds).ratios, next(rounds).ratios] == [[1.5], [1.5, 1.5]]
    with pytest.raises(KeyboardInterrupt):
        next(rounds)


def test_figures_are_of_theirs_over_ours() -> None:
    figures = Rounds([0.1, 0.2, 0.4], [0.3, 0.2, 0.2]).figures()
    assert figures == {"ours_ms": 200, "theirs_ms": 200, "ratio": 1, "ratio_least": 0.5, "ratio_largest": 3}


def test_a_first_call_of_each_is_not_counted() -> None:
    order: list[str] = []
    *_, rounds = compared(lambda: order.append("ours"), lambda: order.append("theirs"), 2)
    assert order == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]
    assert len(rounds.ours) == len(rounds.theirs) == 2
    assert min(rounds.ratios) == pytest.approx(rounds.figures()["ratio_least"], abs=1e-3)
