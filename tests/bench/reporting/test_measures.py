"""Figures and series as they stand in a result."""

from __future__ import annotations

import pytest

from bench.reporting.measures import KEPT_SAMPLES, Measure, Plot, thinned, told


def test_thinned_keeps_the_ends_and_the_order() -> None:
    values = list(range(10 * KEPT_SAMPLES))
    kept = thinned(values)
    assert len(kept) == KEPT_SAMPLES
    assert kept[0] == values[0]
    assert kept[-1] == values[-1]
    assert kept == sorted(set(kept))
    assert thinned([3, 1, 2]) == [3, 1, 2]


def test_a_figure_tells_its_interval_only_when_there_is_one() -> None:
    figures = told([Measure("rate", 5.0, "images/s", "higher", low=4.5, high=5.5), Measure("ratio", 2.0)])["measures"]
    assert figures["rate"] == {"value": 5.0, "unit": "images/s", "better": "higher", "low": 4.5, "high": 5.5}
    assert figures["ratio"] == {"value": 2.0, "unit": "", "better": None}


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="step"):
        told([Measure("step", 1.0), Measure("step", 2.0)])
    with pytest.raises(ValueError, match="curve of it"):
        told([], [Plot("curve of it", "curve", "x", "y"), Plot("curve of it", "histogram", "x", "y")])
