"""server.step_curve: interpolation, the row cap, and what measurements make of both."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.step_curve import ENOUGH, OUTLIER, StepCurve
from tests.virtual_server import device

POINTS = [(2, 0.010), (4, 0.014), (8, 0.030), (16, 0.062)]


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(1, 0.010), (2, 0.010), (3, 0.012), (4, 0.014), (5, 0.018), (6, 0.022), (12, 0.046), (16, 0.062), (24, 0.093)],
)
def test_seconds_are_linear_between_points_and_in_proportion_beyond_them(rows: int, seconds: float) -> None:
    assert StepCurve(POINTS).seconds(rows) == pytest.approx(seconds)
    assert StepCurve(POINTS[::-1]).seconds(rows) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("rows", "padded"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16), (17, 17)]
)
def test_a_call_takes_as_long_as_the_batch_size_that_it_is_padded_to(rows: int, padded: int) -> None:
    curve = StepCurve(POINTS, batch_sizes=(8, 2, 16, 4))
    assert curve.padded(rows) == padded
    assert curve.seconds(rows) == StepCurve(POINTS).seconds(padded)


def test_any_rows_are_taken_where_no_batch_sizes_are_given() -> None:
    assert [StepCurve(POINTS).padded(rows) for rows in (1, 7, 31)] == [1, 7, 31]


@pytest.mark.parametrize("max_rows", [2, 3, 16, 19, 20, 64, 100])
def test_without_points_calls_take_no_time_and_the_cap_is_all_that_is_allowed(max_rows: int) -> None:
    assert StepCurve().seconds(max_rows) == 0.0
    assert StepCurve().row_cap(max_rows) == max_rows
    assert StepCurve(batch_sizes=(1, 2, max_rows, max_rows + 1)).row_cap(max_rows) == max_rows


@pytest.mark.parametrize("points", [[(0, 1.0)], [(-1, 1.0)], [(2, 0.0)], [(2, -1.0)], [(2, float("nan"))]])
def test_rows_and_seconds_that_are_not_positive_are_refused(points: Sequence[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="positive"):
        StepCurve([(4, 1.0), *points])


@pytest.mark.parametrize(
    ("seconds", "cap"),
    [
        (lambda rows: 0.01 * rows, 2),
        (lambda rows: 0.01, 16),
        (lambda rows: 0.01 * max(rows, 6), 6),
        (lambda rows: 0.01 * rows if rows > 8 else 0.04, 8),
        (device, 14),
    ],
)
def test_the_cap_is_the_fewest_rows_that_are_nearly_as_good_as_the_best(
    seconds: Callable[[int], float], cap: int
) -> None:
    assert StepCurve([(rows, seconds(rows)) for rows in range(1, 17)]).row_cap(16) == cap


def test_a_cap_that_was_set_is_taken_whatever_the_curve_says() -> None:
    curve = StepCurve([(rows, 0.01 * rows) for rows in (2, 16)], cap=12)
    assert (curve.row_cap(16), curve.row_cap(8)) == (12, 8)


@pytest.mark.parametrize(("sizes", "cap"), [((1, 32), 16), ((64,), 16), ((1, 2, 4, 32), 4), ((1,), 16)])
def test_only_batch_sizes_that_are_allowed_are_caps(sizes: Sequence[int], cap: int) -> None:
    assert StepCurve([(2, 0.01), (64, 0.01)], sizes).row_cap(16) == cap


CURVES = st.dictionaries(st.integers(1, 64), st.floats(1e-4, 1.0), min_size=1, max_size=8)
SIZES = st.one_of(st.just(()), st.lists(st.integers(1, 64), min_size=1, max_size=6, unique=True).map(tuple))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(CURVES, SIZES, st.integers(2, 64))
def test_whatever_the_curve_the_cap_is_an_allowed_size_and_no_smaller_one_is_good_enough(
    points: dict[int, float], sizes: tuple[int, ...], max_rows: int
) -> None:
    curve = StepCurve(list(points.items()), sizes)
    allowed = [rows for rows in (sizes or range(2, max_rows + 1)) if 2 <= rows <= max_rows] or [max_rows]
    rates = {rows: rows / curve.seconds(rows) for rows in allowed}
    good = [rows for rows in allowed if rates[rows] >= ENOUGH * max(rates.values())]
    assert curve.row_cap(max_rows) == min(good)
    assert curve.row_cap(max_rows) == curve.row_cap(max_rows)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(CURVES, SIZES)
def test_more_rows_never_take_less_time_nor_do_more_allowed_rows_lower_the_cap(
    points: dict[int, float], sizes: tuple[int, ...]
) -> None:
    rising = dict(zip(sorted(points), sorted(points.values()), strict=True))
    curve = StepCurve(list(rising.items()), sizes)
    seconds = [curve.seconds(rows) for rows in range(1, 65)]
    assert all(less <= more * (1 + 1e-9) for less, more in pairwise(seconds))
    assert all(seconds[rows - 1] == pytest.approx(rising[rows]) for rows in rising if curve.padded(rows) == rows)
    if not sizes:
        caps = [curve.row_cap(max_rows) for max_rows in range(2, 65)]
        assert caps == sorted(caps)


def test_the_first_measurement_is_taken_as_it_is() -> None:
    curve = StepCurve()
    curve.observe(8, 0.04)
    assert curve.seconds(8) == 0.04
    assert curve.seconds(16) == pytest.approx(0.08)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_what_is_no_time_is_not_a_measurement(seconds: float) -> None:
    curve = StepCurve(POINTS)
    curve.observe(8, seconds)
    assert curve.seconds(8) == 0.030


@pytest.mark.parametrize("factor", [0.2, 0.9, 1.1, 8.0])
def test_the_curve_comes_to_what_is_measured_at_every_size(factor: float) -> None:
    """Also to another shape: here calls of few rows were reckoned too quick by another factor than large ones."""
    curve, chance = StepCurve([(rows, device(rows)) for rows in (2, 4, 8, 16)]), random.Random(1)
    for _ in range(3000):
        rows = chance.choice((2, 4, 8, 12, 16))
        curve.observe(rows, factor * (0.02 + 0.001 * rows) * chance.uniform(0.97, 1.03))
    for rows in (2, 4, 8, 12, 16):
        assert curve.seconds(rows) == pytest.approx(factor * (0.02 + 0.001 * rows), rel=0.05)


def test_another_speed_is_learned_at_all_sizes_from_calls_of_one() -> None:
    curve = StepCurve(POINTS)
    for _ in range(100):
        curve.observe(16, 2 * 0.062)
    for rows, seconds in POINTS:
        assert curve.seconds(rows) == pytest.approx(2 * seconds, rel=0.1)


def test_one_call_that_was_held_up_moves_the_curve_little_and_the_cap_hardly() -> None:
    curve = StepCurve([(rows, device(rows)) for rows in range(2, 17)])
    curve.observe(14, 1000.0)
    assert curve.seconds(14) / device(14) < 1 + 0.15 * (OUTLIER - 1)
    assert abs(curve.row_cap(16) - 14) <= 1


@pytest.mark.parametrize("sizes", [(), (2, 4, 8, 16)])
def test_slow_spells_do_not_leave_calls_small(sizes: Sequence[int]) -> None:
    """Calls are filled to the cap and nothing else is measured, so that a cap lowered once would never rise again."""
    best, chance = 16 / device(16), random.Random(3)
    for _ in range(30):
        curve = StepCurve([(rows, device(rows)) for rows in (2, 4, 8, 16)], sizes)
        for _ in range(3):
            factor, length = chance.uniform(1.2, 6.0), chance.randint(1, 40)
            for call in range(length + 300):
                rows = curve.padded(curve.row_cap(16) // 2 * 2)
                curve.observe(rows, device(rows) * chance.uniform(0.97, 1.03) * (factor if call < length else 1.0))
        rows = curve.padded(curve.row_cap(16) // 2 * 2)
        assert rows / device(rows) > 0.85 * best
