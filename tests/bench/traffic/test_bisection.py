"""The border is found, through chance, and intervals hold what they say."""

from __future__ import annotations

import random

import pytest

from bench.traffic.bisection import (
    Search,
    Standing,
    Trial,
    by_spread,
    crossing,
    highest_passing,
    independent,
    needed,
    student,
    wilson,
)


@pytest.mark.parametrize("border", range(-1, 31))
@pytest.mark.parametrize("start", [-5, 0, 7, 30, 99])
def test_the_highest_that_passes_is_found(border: int, start: int) -> None:
    tried: list[int] = []

    def passes(place: int) -> bool:
        tried.append(place)
        return place <= border

    assert highest_passing(passes, start, top=30) == border
    assert len(tried) == len(set(tried))
    assert all(0 <= place <= 30 for place in tried)


def test_wilson_intervals_are_the_ones_of_the_textbook() -> None:
    # Newcombe (1998), Table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0.5, 0) == (0.0, 1.0)


def test_requests_that_fail_together_are_worth_fewer() -> None:
    draw = random.Random(0)
    scattered = [draw.random() < 0.9 for _ in range(1000)]
    together = [i % 200 >= 20 for i in range(1000)]
    assert independent(scattered) > 500
    assert independent(together) < 150
    assert independent([True] * 300) == 300
    assert independent([True] * 300, together=10.0) == 15
    assert independent([]) == 0


def test_few_parts_are_worth_less_than_many_and_too_few_say_nothing() -> None:
    in_time = [i % 10 != 0 for i in range(1000)]
    assert needed(20.0) == 200
    assert by_spread(in_time, 2.0) > by_spread(in_time, 80.0) > by_spread(in_time, 80.0, 0.99) > 0
    assert by_spread(in_time[:199], 20.0) == pytest.approx(199 / 20)


@pytest.mark.parametrize(("freedom", "quantile"), [(4, 2.776), (6, 2.447), (19, 2.093), (1000, 1.962)])
def test_student_is_the_one_of_the_tables(freedom: int, quantile: float) -> None:
    assert 1.95996 * student(0.95, freedom) == pytest.approx(quantile, abs=0.004)


def test_an_interval_of_requests_that_wait_together_holds_the_share() -> None:
    """Late ones come in runs of 10 on average, by a chain of two states, 95 % in time."""
    held, plain = 0, 0
    for seed in range(200):
        draw = random.Random(seed)
        state, in_time = True, []
        for _ in range(600):
            state = draw.random() >= (1 / 190 if state else 0.9)
            in_time.append(state)
        trial = Trial.of(1.0, 0, in_time, together=10.0)
        low, high = trial.interval
        held += low <= 0.95 <= high
        low, high = wilson(trial.share, trial.counted)
        plain += low <= 0.95 <= high
    assert held / 200 >= 0.93
    assert plain / 200 < 0.7


def standing(rate: float, share: float, counted: int = 100) -> Standing:
    return Standing.of([Trial(rate, 0, counted, round(share * counted), counted)])


def test_the_crossing_lies_between_rates_and_shares_that_rise_by_chance_are_pooled() -> None:
    assert crossing([standing(1, 1.0), standing(4, 0.9)], 0.95) == pytest.approx(2.0)
    assert crossing([standing(4, 0.9), standing(1, 0.9), standing(2, 1.0)], 0.95) == pytest.approx(2.0)
    assert crossing([standing(1, 0.99)], 0.95) == 1
    assert crossing([standing(1, 0.5)], 0.95) == 0
    assert crossing([standing(1, 1.0), standing(2, 0.94), standing(3, 0.98), standing(4, 0.5)], 0.95) > 3


def noisy(border: float, count: int = 400) -> Search:
    """At rates up to `border` 95 % are in time, and fewer the higher the rate."""

    def attempt(rate: float, seed: int) -> Trial:
        draw = random.Random(f"{rate}/{seed}")
        chance = min(1.0, 0.95 + 0.5 * (1 - rate / border))
        return Trial.of(rate, seed, [draw.random() < chance for _ in range(count)])

    return Search(attempt, 0.95, highest=200.0, apart=1.05, places=100, repeats=3)


@pytest.mark.parametrize("border", [3.0, 10.0, 90.0])
@pytest.mark.parametrize("start", [2.0, 150.0])
def test_a_noisy_border_is_found_and_enclosed(border: float, start: float) -> None:
    search = noisy(border)
    search.run(start)
    assert search.complete
    assert search.value == pytest.approx(border, rel=0.1)
    assert search.high is not None
    assert search.low <= search.value <= search.high
    assert search.low < border * 1.05
    assert search.high > border / 1.05
    assert 3 in {len(made) for made in search.trials.values()}
    assert len({trial.seed for made in search.trials.values() for trial in made}) == 3


def test_a_search_whose_highest_rate_passes_is_open() -> None:
    search = noisy(1000.0)
    search.run(50.0)
    assert search.open
    assert (search.value, search.high) == (200.0, None)
    search = noisy(10.0)
    search.run(50.0)
    assert not search.open


def test_nothing_passes_where_nothing_can() -> None:
    search = noisy(0.1)
    search.run(50.0)
    assert (search.value, search.low) == (0.0, 0.0)


def test_a_search_without_time_tells_what_it_knows() -> None:
    search = noisy(10.0)
    search.ended = lambda: len(search.trials) >= 2
    search.run(5.0)
    assert not search.complete
    assert len(search.trials) == 2
    assert search.value > 0
    search = noisy(10.0)
    search.ended = lambda: True
    search.run(5.0)
    assert (search.trials, search.value) == ({}, 0.0)
