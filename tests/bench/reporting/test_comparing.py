"""Noise stays noise, and what is more than that is seen."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from bench.reporting.comparing import Change, Judging, compared, differences, regressions
from bench.reporting.measures import Better, Measure
from bench.reporting.reading import read
from tests.written_results import written

JUDGING = Judging()


def _one(a: Measure, b: Measure, judging: Judging = JUDGING) -> Change:
    (change,) = compared({"m": a}, {"m": b}, judging)
    return change


def _noisy(middle: float, count: int, seed: int, better: Better | None = "lower") -> Measure:
    draw = random.Random(seed)
    return Measure.median("m", [middle * (1 + draw.gauss(0, 0.05)) for _ in range(count)], "ms", better)


def test_repetitions_of_the_same_thing_rarely_differ() -> None:
    quick = Judging(resampled=300)
    verdicts = [_one(_noisy(10, 15, 2 * n), _noisy(10, 15, 2 * n + 1), quick).verdict for n in range(60)]
    # One in twenty is expected; so many by chance only once in a thousand runs of other seeds.
    assert len(verdicts) - verdicts.count("same") <= 9


@pytest.mark.parametrize(("better", "verdict"), [("lower", "worse"), ("higher", "better"), (None, "changed")])
def test_a_fifth_more_is_seen_among_a_twentieth_of_noise(better: Better | None, verdict: str) -> None:
    change = _one(_noisy(10, 15, 0, better), _noisy(12, 15, 1, better))
    assert (change.verdict, change.basis) == (verdict, "samples")
    assert change.low is not None
    assert change.high is not None
    assert 1 < change.low < 1.2 < change.high < 1.4


def test_the_interval_is_of_the_mean_where_the_value_is_one() -> None:
    skewed = [1.0] * 9 + [100.0]
    a = Measure("m", 10.9, samples=skewed)
    b = Measure("m", 21.8, samples=[2 * value for value in skewed])
    change = _one(a, b)
    assert change.ratio == pytest.approx(2.0)
    assert change.high is not None
    # Of medians it would be exactly 2 at both ends.
    assert change.high > 3


def test_samples_below_zero_are_compared_by_their_difference() -> None:
    a = Measure.median("m", [-1.0, -0.9, -1.1, -1.05, -0.95], "ms", "lower")
    b = Measure.median("m", [1.0, 0.9, 1.1, 1.05, 0.95], "ms", "lower")
    change = _one(a, b)
    assert (change.verdict, change.ratio, change.low) == ("worse", None, None)
    assert change.by == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ((4.5, 5.5), (5.4, 6.5), "same"),
        ((4.5, 5.5), (5.6, 6.5), "worse"),
        ((4.5, 5.5), (3.0, 4.4), "better"),
    ],
)
def test_ranges_differ_when_they_do_not_meet(a: tuple[float, float], b: tuple[float, float], verdict: str) -> None:
    ours, theirs = (Measure("m", sum(ends) / 2, "ms", "lower", low=ends[0], high=ends[1]) for ends in (a, b))
    change = _one(ours, theirs)
    assert (change.verdict, change.basis) == (verdict, "ranges")
    assert change.low == pytest.approx(b[0] / a[1])
    assert change.high == pytest.approx(b[1] / a[0])


def test_an_end_that_is_not_known_is_as_far_as_can_be(tmp_path: Path) -> None:
    """Such as the upper one of a percentile that few requests tell."""
    known = Measure("m", 5.0, "ms", "lower", low=4.0, high=6.0)
    told = Measure("m", 8.0, "ms", "lower", low=7.0, high=math.inf)
    least = read(written(tmp_path / "a.json", [told])).measures["m"]
    assert (_one(known, least).verdict, _one(known, least).basis) == ("worse", "ranges")
    assert _one(least, Measure("m", 99.0, "ms", "lower", low=98.0, high=100.0)).verdict == "same"
    assert _one(least, known).verdict == "better"


def test_two_or_three_repetitions_must_also_be_far_apart() -> None:
    few = Measure.median("m", [1.00, 1.01, 1.02], "ms", "lower")
    assert _one(few, Measure.median("m", [1.05, 1.06, 1.07], "ms", "lower")).verdict == "same"
    assert _one(few, Measure.median("m", [1.25, 1.26, 1.27], "ms", "lower")).verdict == "worse"


@pytest.mark.parametrize(
    ("ours", "theirs", "confidence", "basis"),
    [(4, 4, 0.95, "samples"), (3, 5, 0.95, "samples"), (3, 4, 0.95, "ranges"), (4, 4, 0.99, "ranges")],
)
def test_a_rank_test_is_asked_only_where_it_can_say_something(
    ours: int, theirs: int, confidence: float, basis: str
) -> None:
    a = Measure.median("m", [1.0 + n / 1000 for n in range(ours)], "ms", "lower")
    b = Measure.median("m", [1.5 + n / 1000 for n in range(theirs)], "ms", "lower")
    change = _one(a, b, Judging(confidence=confidence))
    assert (change.verdict, change.basis) == ("worse", basis)


def test_without_a_spread_the_tolerance_decides() -> None:
    a, near, far = (Measure("m", value, "ms", "lower") for value in (10.0, 10.9, 11.1))
    assert _one(a, near).verdict == "same"
    assert _one(a, far).verdict == "worse"
    assert _one(a, far).basis == "no spread known"
    assert _one(a, far, Judging(tolerance=0.2)).verdict == "same"


def test_zero_and_what_is_missing() -> None:
    zero, two = Measure("m", 0.0, "errors", "lower"), Measure("m", 2.0, "errors", "lower")
    assert _one(zero, zero).verdict == "same"
    change = _one(zero, two)
    assert (change.verdict, change.ratio, change.by) == ("worse", None, math.inf)
    assert _one(two, zero).verdict == "better"
    assert _one(two, Measure("m", 2.0, "s", "lower")).verdict == "other unit"
    none = Measure("m", math.nan)
    assert [change.verdict for change in compared({"a": two, "b": none}, {"b": two}, JUDGING)] == [
        "only in A",
        "only in B",
    ]
    assert compared({"m": none}, {"m": none}, JUDGING) == []


def test_only_what_is_worse_by_more_than_the_threshold_is_a_regression() -> None:
    a = {"fast": _noisy(10, 20, 0), "slow": _noisy(10, 20, 1), "same": _noisy(10, 20, 2), "none": Measure("none", 0.0)}
    b = {"fast": _noisy(7, 20, 3), "slow": _noisy(13, 20, 4), "same": a["same"], "none": Measure("none", 0.0)}
    changes = compared(a, b, JUDGING)
    (sentence,) = regressions(changes, 0.05)
    assert sentence.startswith("slow is worse by ")
    assert sentence.endswith(" ms")
    assert regressions(changes, 0.5) == []


def test_a_figure_that_is_gone_is_a_regression_if_it_could_be_worse() -> None:
    a = {"latency": Measure("latency", 1.0, "ms", "lower"), "rows": Measure("rows", 2.0)}
    for b in ({}, {"latency": Measure("latency", math.nan, "ms", "lower"), "more": Measure("more", 1.0, "", "lower")}):
        (sentence,) = regressions(compared(a, b, JUDGING), 0.5)
        assert sentence.startswith("latency is only in A")


def test_what_else_differs_is_told(tmp_path: Path) -> None:
    measures = [Measure("m", 1.0)]
    a = read(written(tmp_path / "a.json", measures))
    assert differences(a, read(written(tmp_path / "b.json", measures))) == []
    other = {**a.environment, "cores": 96, "revision": "later"}
    changed: dict[str, Any] = {
        "environment": other,
        "command": "python -m bench online --steps 4",
        "partial": True,
        "failures": ["x"],
    }
    b = read(written(tmp_path / "b.json", [], **changed))
    told = differences(a, b)
    assert [sentence.split()[0:2] for sentence in told] == [
        ["A's", "cores"],
        ["the", "commands"],
        ["B", "is"],
        ["B", "has"],
        ["B", "has"],
    ]
    triton = {"name": "triton", "version": "2.51.0", "checkpoint": "export", "max_rows": 16}
    ours, theirs = (
        read(
            written(tmp_path / f"{n}.json", measures, environment={**a.environment, "server": triton | {"max_rows": n}})
        )
        for n in (16, 32)
    )
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == ["A's server's max_rows is 16, the other's is 32"]
    assert differences(a, theirs) == ["only B tells which server was measured"]
    c = read(written(tmp_path / "c.json", measures, program="host"))
    assert differences(a, c) == ["the programs differ: online and host"]
    older = {name: value for name, value in a.environment.items() if name != "gpus"}
    none = read(written(tmp_path / "d.json", measures, environment={**older, "gpus": []}))
    assert differences(read(written(tmp_path / "e.json", measures, environment=older)), none) == []
    one = read(written(tmp_path / "f.json", measures, environment={**older, "gpus": ["L4"]}))
    assert differences(none, one) == ["A's gpus is none, the other's is ['L4']"]
