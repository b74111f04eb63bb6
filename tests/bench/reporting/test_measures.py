"""Figures and series as they stand in a result."""

from __future__ import annotations

import math

import pytest

from bench.reporting.measures import KEPT_SAMPLES, Measure, Plot, distribution, thinned, told


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


def test_a_distribution_counts_every_sample_once() -> None:
    assert distribution([0.0, 1.0, 1.5, 4.0], bins=4) == [(0.5, 1.0), (1.5, 2.0), (2.5, 0.0), (3.5, 1.0)]
    assert distribution([2.0, 2.0]) == [(2.0, 2.0)]
    assert distribution([]) == []


def test_what_is_not_finite_is_null() -> None:
    plot = Plot("p", "curve", "x", "y", {"s": [(0, 1), (1, math.nan)]})
    found = told([Measure("m", math.nan, samples=(1.0, math.inf))], [plot])
    assert found["measures"]["m"] == {"value": None, "unit": "", "better": None, "samples": [1.0]}
    assert found["plots"][0]["series"] == {"s": [[0.0, 1.0]]}


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="step"):
        told([Measure("step", 1.0), Measure("step", 2.0)])
    with pytest.raises(ValueError, match="curve of it"):
        told([], [Plot("curve of it", "curve", "x", "y"), Plot("curve of it", "histogram", "x", "y")])
