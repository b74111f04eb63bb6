"""What every single request of a measurement took, beside the figures that are made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from bench.reporting.measures import Measure, Plot, distribution

# By what was measured, and then by its way or state: milliseconds, or ratios.
Kept: TypeAlias = dict[str, dict[str, list[float]]]
# The 99th percentile of fewer is none other than the largest.
FEWEST_OF_P99 = 100
# Of a drawing of refusals, which have as many ways as there are reasons and floods, that is enough.
REFUSAL, RATIO = "refusal", "over its time alone"


def slowest(figures: Mapping[str, float]) -> tuple[str, float]:
    """What is told of the slow end, with its name, of what `milliseconds` gives of one or more: p99 or the largest."""
    return ("p99", figures["p99"]) if figures["count"] >= FEWEST_OF_P99 else ("largest", figures["max"])


def medians(kept: Kept) -> Iterator[Measure]:
    """One for each way; refusals are told by their percentiles alone."""
    for what, ways in kept.items():
        for way, values in ways.items():
            if values and not what.startswith(REFUSAL):
                yield Measure.median(_named(what, way), values, _unit(what), "lower")


def histograms(kept: Kept) -> list[Plot]:
    """One for each thing measured, without the slowest hundredth, which would leave no room for the rest."""
    plots = []
    for what, ways in kept.items():
        shown = {way or what: sorted(values)[: max(1, round(0.99 * len(values)))] for way, values in ways.items()}
        lines = {way: distribution(values) for way, values in shown.items()}
        plots.append(Plot(what.capitalize(), "histogram", _unit(what) or "times", "requests", lines))
    return plots


def _named(what: str, way: str) -> str:
    return f"{what} ({way}), median" if way else f"{what}, median"


def _unit(what: str) -> str:
    return "" if what.endswith(RATIO) else "ms"
