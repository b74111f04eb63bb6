"""A border lies where trials on both sides say, and anywhere where they say nothing."""

from __future__ import annotations

import math

import pytest

from bench.traffic.bisection import Trial
from bench.traffic.border import enclosed


def tried(rate: float, share: float, worth: float = 200.0) -> Trial:
    return Trial(rate, 0, 1000, round(1000 * share), worth)


def test_the_border_is_between_rates_that_pass_and_rates_that_do_not() -> None:
    trials = [tried(1, 1.0), tried(2, 0.99), tried(2.2, 0.95), tried(2.4, 0.85), tried(4, 0.1)]
    low, high = enclosed(trials, 0.95, 0.95)
    assert high is not None
    assert 2 < low < 2.2 < high < 2.4
    # What is worth four times as much tells twice as exactly.
    closer = enclosed([tried(trial.rate, trial.share, 800.0) for trial in trials], 0.95, 0.95)
    assert closer[1] is not None
    assert math.log(high / low) / math.log(closer[1] / closer[0]) == pytest.approx(2, abs=0.4)


def test_a_border_is_open_where_nothing_was_tried() -> None:
    assert enclosed([], 0.95, 0.95) == (0.0, None)
    assert enclosed([tried(1, 0.95)], 0.95, 0.95) == (0.0, None)
    low, high = enclosed([tried(1, 1.0), tried(2, 1.0)], 0.95, 0.95)
    assert low == pytest.approx(2)
    assert high is None
    low, high = enclosed([tried(1, 0.5), tried(2, 0.2)], 0.95, 0.95)
    assert low == 0
    assert high == pytest.approx(1)


def test_one_rate_says_what_the_interval_of_a_share_says() -> None:
    """Of 90 in 100, twice the logarithm of the likelihood's ratio is 3.84 at 0.8312 and 0.9486."""
    for goal, below, above in ((0.83, False, True), (0.833, True, True), (0.947, True, True), (0.95, True, False)):
        low, high = enclosed([tried(1, 0.9, 100.0)], goal, 0.95)
        assert (low == 0, high is None) == (below, above)
