"""What differs between two results by more than noise."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeAlias

import numpy as np

from bench.reporting.measures import Better, Measure
from bench.reporting.reading import Result
from bench.reporting.words import number
from server.errors import ServerError

Verdict: TypeAlias = Literal["better", "worse", "changed", "same", "only in A", "only in B", "other unit"]
Interval: TypeAlias = tuple[float, float]
Basis: TypeAlias = Literal["samples", "ranges", "no spread known", ""]
# Options that say where something is kept, not what is measured.
PLACES = ("--json", "--html", "--log", "--out", "--pictures")
COMPARED = ("processor", "cores", "gpus", "memory_gib", "system", "python", "packages")


@dataclass(frozen=True, slots=True)
class Judging:
    """How sure a difference must be.

    Attributes:
        confidence: of the interval and the rank test of one figure by itself; of many, some will be wrong.
        tolerance: the part by which a figure without a known spread may differ and count as the same.
        resampled: draws of the bootstrap.
    """

    confidence: float = 0.95
    tolerance: float = 0.1
    resampled: int = 2000


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in A and in B.

    Attributes:
        a, b: values; None where there is none.
        ratio: b / a; None where a is 0, or the signs differ.
        low, high: between which the ratio lies; None where no spread is known.
        by: the part of a by which b is more, or less if negative; infinite where a is 0 and b is not.
        basis: what the verdict rests on.
    """

    name: str
    unit: str
    better: Better | None
    a: float | None
    b: float | None
    ratio: float | None
    low: float | None
    high: float | None
    by: float | None
    basis: Basis
    verdict: Verdict


def compared(a: Mapping[str, Measure], b: Mapping[str, Measure], judging: Judging) -> list[Change]:
    """Every figure of either side, in A's order and then B's; one that is nan on a side is not there."""
    there = [{name: one for name, one in side.items() if math.isfinite(one.value)} for side in (a, b)]
    return [_change(name, there[0].get(name), there[1].get(name), judging) for name in {**there[0], **there[1]}]


def _change(name: str, a: Measure | None, b: Measure | None, judging: Judging) -> Change:
    if a is None or b is None:
        one = a or b
        assert one is not None
        values = (a.value if a else None, b.value if b else None)
        missing: Verdict = "only in A" if a else "only in B"
        return Change(name, one.unit, one.better, *values, None, None, None, None, "", missing)
    if a.unit != b.unit:
        return Change(name, f"{a.unit} / {b.unit}", None, a.value, b.value, None, None, None, None, "", "other unit")
    ratio = b.value / a.value if a.value * b.value > 0 else None
    by = (b.value - a.value) / abs(a.value) if a.value else math.copysign(math.inf, b.value) if b.value else 0.0
    interval, basis, apart = _judged(a, b, judging)
    low, high = interval if interval and ratio is not None else (None, None)
    verdict = _verdict(a.value, b.value, b.better) if apart else "same"
    return Change(name, b.unit, b.better, a.value, b.value, ratio, low, high, by, basis, verdict)


def _verdict(a: float, b: float, better: Better | None) -> Verdict:
    if better is None:
        return "changed"
    return "better" if (b < a) == (better == "lower") else "worse"


def _judged(a: Measure, b: Measure, judging: Judging) -> tuple[Interval | None, Basis, bool]:
    """The interval of b / a, what it rests on, and whether they differ."""
    if a.value == b.value:
        return None, "", False
    counts = len(a.samples), len(b.samples)
    if min(counts) > 1 and testable(*counts, judging.confidence):
        return _by_samples(a, b, judging)
    ranges = _range(a), _range(b)
    far = abs(b.value - a.value) > judging.tolerance * abs(a.value)
    if not ranges[0] or not ranges[1]:
        return None, "no spread known", far
    (a_low, a_high), (b_low, b_high) = ranges[0], ranges[1]
    interval = (b_low / a_high, b_high / a_low) if min(a_low, b_low) > 0 else None
    apart = b_low > a_high or b_high < a_low
    # Of a few repetitions, all of one side may be above all of the other by mere chance.
    few = any(count and not testable(count, count, judging.confidence) for count in counts)
    return interval, "ranges", apart and (far or not few)


def testable(ours: int, theirs: int, confidence: float) -> bool:
    """Whether a rank test of so many repetitions can tell anything apart: all of one side above all of the other."""
    return 2 / math.comb(ours + theirs, ours) < 1 - confidence


def _range(measure: Measure) -> Interval | None:
    if len(measure.samples) > 1:
        return min(measure.samples), max(measure.samples)
    low, high = measure.low, measure.high
    if low is None or high is None or not (math.isfinite(low) or math.isfinite(high)):
        return None
    # As read, an end that is not known is none.
    return low if math.isfinite(low) else -math.inf, high if math.isfinite(high) else math.inf


def _by_samples(a: Measure, b: Measure, judging: Judging) -> tuple[Interval | None, Basis, bool]:
    """They differ if both say so: a rank test of the repetitions, and a bootstrap of their median or mean."""
    stats = _statistics()
    if len({*a.samples, *b.samples}) == 1:
        return None, "samples", False
    likely = float(stats.mannwhitneyu(a.samples, b.samples).pvalue)
    positive = min(*a.samples, *b.samples) > 0
    middle = _middle(a)

    def statistic(theirs: Any, ours: Any, axis: int = -1) -> Any:
        one, other = middle(theirs, axis=axis), middle(ours, axis=axis)
        return other / one if positive else other - one

    drawn = stats.bootstrap(
        (a.samples, b.samples), statistic, vectorized=True, method="percentile", rng=0,
        n_resamples=judging.resampled, confidence_level=judging.confidence,
    )  # fmt: skip
    low, high = map(float, drawn.confidence_interval)
    unchanged = 1.0 if positive else 0.0
    apart = likely < 1 - judging.confidence and not low <= unchanged <= high
    return (low, high) if positive else None, "samples", apart


def _middle(measure: Measure) -> Any:
    """What the value is of its repetitions: the median, or the mean."""
    middles = {np.median: statistics.median(measure.samples), np.mean: statistics.mean(measure.samples)}
    return min(middles, key=lambda name: abs(middles[name] - measure.value))


def _statistics() -> Any:
    try:
        return import_module("scipy.stats")
    except ImportError as error:
        raise ServerError("comparing needs scipy: install the extra, `pip install '.[bench]'`") from error


def differences(a: Result, b: Result) -> list[str]:
    """What else differs than the figures: a sentence for each thing that may be their cause."""
    found = _told_apart("A's ", *({key: one.environment.get(key) for key in COMPARED} for one in (a, b)))
    ours, theirs = a.environment.get("server"), b.environment.get("server")
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        found += _told_apart("A's server's ", ours, theirs)
    elif ours or theirs:
        found.append(f"only {'A' if ours else 'B'} tells which server was measured")
    if a.program != b.program:
        found.append(f"the programs differ: {a.program} and {b.program}")
    elif asked(a.command) != asked(b.command):
        found.append(f"the commands differ: `{a.command}` and `{b.command}`")
    for name, result in (("A", a), ("B", b)):
        if result.partial:
            found.append(f"{name} is partial: it ended before its time")
        if result.failures:
            found.append(f"{name} has {len(result.failures)} failures: {result.failures[0]}")
        if not result.measures:
            found.append(f"{name} has no figures to compare")
    return found


def _told_apart(whose: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that differs; what one of them does not tell is as if there were none."""
    return [
        f"{whose}{key} is {a.get(key) or 'none'}, the other's is {b.get(key) or 'none'}"
        for key in {**a, **b}
        if (a.get(key) or None) != (b.get(key) or None)
    ]


def asked(command: str) -> list[str]:
    """The words of a command without those that say where something is kept."""
    try:
        words = shlex.split(command)
    except ValueError:
        return [command]
    kept = []
    for before, word in zip(["", *words], words, strict=False):
        if before not in PLACES and word.partition("=")[0] not in PLACES:
            kept.append(word)
    return kept


def regressions(changes: Sequence[Change], threshold: float) -> list[str]:
    """A sentence for every figure that is worse by more than that part, or that B has no more."""
    gone = [
        f"{change.name} is only in A, so nothing says that it did not get worse"
        for change in changes
        if change.verdict == "only in A" and change.better
    ]
    return gone + [
        f"{change.name} is worse{f' by {percent(change)}' if change.a else ''}, from {number(change.a or 0.0)} to "
        f"{number(change.b or 0.0)} {change.unit}".rstrip()
        for change in changes
        if change.verdict == "worse" and abs(change.by or 0.0) > threshold
    ]


def percent(change: Change) -> str:
    """By how much, without its sign; there is no such part of 0."""
    by = abs(change.by or 0.0)
    return f"{100 * by:.2g} %" if math.isfinite(by) else "from 0"
