"""Figures from lists of seconds."""

from __future__ import annotations

import pytest

from bench.traffic.latencies import milliseconds, percentile, slope


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_percentiles_are_values_that_came(share: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value
    assert percentile([7.0], share) == 7.0


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="of 0 values"):
        percentile([], 0.5)
    assert milliseconds([]) == {"count": 0}


def test_figures_are_in_milliseconds() -> None:
    figures = milliseconds([0.001, 0.002, 0.003])
    assert (figures["count"], figures["mean"], figures["p50"], figures["p99"]) == (3, 2.0, 2.0, 3.0)
    assert (figures["min"], figures["max"]) == (1.0, 3.0)


def test_slope_of_a_line() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(1, 5)]) == slope([(1, 5), (1, 6)]) == 0
