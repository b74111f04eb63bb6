"""What is told of a search: a rate, why there is none, and what a server did that it may not."""

from __future__ import annotations

import argparse
import math

import pytest

from bench.traffic.alone import Alone
from bench.traffic.attempt import Attempted
from bench.traffic.bisection import Search, Trial
from bench.traffic.live_goodput import ABOVE, DOWN, Reached, terms_of
from bench.traffic.mix import Kind, Mix
from bench.traffic.slo import Slo


def reached(border: float, places: int = 40) -> Reached:
    """Of a server at which 99 % are in time up to a rate, and half above."""
    found = Reached(Slo(multiple=3.0), 0.95)

    def attempt(rate: float, seed: int) -> Trial:
        in_time = 594 if rate <= border else 300
        made = Attempted(Trial(rate, seed, 600, in_time, 600.0), {"ok": 600}, 0.0, 1.0)
        found.made.append(made)
        return made.trial

    found.search = Search(attempt, 0.95, highest=100.0, apart=1.1, places=places, repeats=2)
    found.search.run(20.0)
    return found


def test_a_border_within_the_grid_is_an_answer() -> None:
    found = reached(30.0)
    measure = found.measure()
    assert found.failure is None
    assert measure.value == pytest.approx(30.0, rel=0.1)
    assert measure.low is not None
    assert measure.high is not None
    assert 20 < measure.low <= measure.value <= measure.high < 40


def test_an_end_of_the_grid_is_none() -> None:
    above, below = reached(1000.0), reached(1.0)
    assert above.failure == "3x is met at least up to 100 requests/s, and nothing above was tried"
    assert (above.measure().value, above.measure().high) == (100.0, None)
    lowest = 100 * 1.1**-40
    assert below.failure == (
        f"no rate down to {lowest:.3g} requests/s meets 3x: 50% were in time, where 95% must be; allow more, or take a "
        "quicker server"
    )
    assert below.measure().value == 0


def test_errors_and_cached_answers_are_told() -> None:
    found = reached(30.0)
    assert found.faults == []
    trial = found.made[0].trial
    found.made.append(Attempted(trial, {"ok": 90, "error": 2}, 0.0, 1.0, errors=("no memory", "no"), cached=7))
    sent = 600 * (len(found.made) - 1) + 92
    errors, cached = found.faults
    assert errors == f"at 3x the server failed at 2 of {sent} requests (no memory): see its log"
    assert cached.startswith(f"at 3x 7 of {sent} answers came from the server's response cache")


@pytest.mark.parametrize("apart", [0.01, 0.05, 0.5])
def test_the_grid_reaches_as_far_however_fine_it_is(apart: float) -> None:
    places = math.ceil(-math.log(DOWN, 1 + apart))
    assert (1 + apart) ** -places <= DOWN < (1 + apart) ** -(places - 1)
    assert pytest.approx(1 / 20) == ABOVE * DOWN


def test_trials_are_long_enough_for_a_queue_to_grow_and_for_parts() -> None:
    kinds = [Kind(steps, "euler", 7.5, 128, 128, 1) for steps in (4, 50)]
    alone = Alone(dict(zip(kinds, (0.1, 1.0), strict=True)), dict.fromkeys(kinds, 0.5))
    options = argparse.Namespace(attainment=0.95, apart=0.05, requests=600)
    terms = terms_of(Slo(multiple=3.0), Mix(), alone, 1.0, options)
    assert terms.longest == pytest.approx(3.0)
    assert terms.least_seconds == pytest.approx(30.0)
    options.apart = 0.01
    assert terms_of(Slo(multiple=3.0), Mix(), alone, 1.0, options).least_seconds == pytest.approx(110.0)
