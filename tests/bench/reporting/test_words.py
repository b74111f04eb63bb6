"""Figures in words."""

from __future__ import annotations

import math

import pytest

from bench.reporting import words
from bench.reporting.measures import Measure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.012345, "0.0123"),
        (1.0, "1"),
        (99.96, "100"),
        (999.4, "999"),
        (999.6, "1,000"),
        (1234567.8, "1,234,568"),
        (-0.5, "-0.5"),
        (math.nan, words.ABSENT),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert words.number(value) == text


def test_spread_is_of_all_repetitions_while_they_are_few() -> None:
    assert words.spread(Measure("m", 2.0, samples=(3.0, 1.0, 2.0))) == "1 to 3 (3)"
    assert words.spread(Measure("m", 50.0, samples=[float(n) for n in range(101)])) == "5 to 95 (101)"
    assert words.spread(Measure("m", 2.0, low=1.0, high=3.0)) == "1 to 3"
    assert words.spread(Measure("m", 2.0, samples=(2.0,))) == ""


def test_a_machine_is_told_as_far_as_it_is_known() -> None:
    whole = {"processor": "P", "cores": 2, "memory_gib": 7.8, "system": "Linux x86_64"}
    assert words.machine(whole) == "P, 2 cores, 7.8 GiB, Linux x86_64"
    gpus = ["L4, 24 GiB", "L4, 24 GiB", "T4"]
    assert words.machine({**whole, "gpus": gpus}) == "P, 2 cores, 7.8 GiB, 2 x L4, 24 GiB, T4, Linux x86_64"
    assert words.machine({}) == "unknown processor"
    assert words.software({"python": "3.11", "packages": {"numpy": "1.26"}, "revision": "abc+"}) == (
        "Python 3.11, numpy 1.26, commit abc+"
    )
    assert words.day("2026-01-02T03:04:05+00:00") == "2026-01-02"
    assert words.day("yesterday") == "yesterday"
