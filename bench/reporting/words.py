"""Figures in words: the same in tables of a terminal, of a page and of README."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bench.reporting.measures import Measure

ABSENT = "–"
# From so many repetitions on, the outermost are left out of what is told of their spread.
MANY = 20
SPREAD = (
    f"from the least to the greatest repetition (the middle 90 % where there are {MANY} or more), with their number in "
    "parentheses; without a number, where the figure lies with 95 % confidence"
)


def number(value: float) -> str:
    """Three digits that count; all of those before the point."""
    if not math.isfinite(value):
        return ABSENT
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def interval(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def figure(measure: Measure) -> str:
    """The value with its unit."""
    return f"{number(measure.value)} {measure.unit}".rstrip()


def bounds(measure: Measure) -> tuple[float, float] | None:
    """Between which the figure lies by its repetitions, or by what was told; None where there is neither."""
    if len(measure.samples) >= MANY:
        cuts = statistics.quantiles(measure.samples, n=20, method="inclusive")
        return cuts[0], cuts[-1]
    if len(measure.samples) > 1:
        return min(measure.samples), max(measure.samples)
    if measure.low is not None and measure.high is not None and not math.isnan(measure.low + measure.high):
        return measure.low, measure.high
    return None


def spread(measure: Measure) -> str:
    """`bounds` in words, and of how many repetitions; empty where there is nothing to tell."""
    found = bounds(measure)
    if found is None:
        return ""
    count = f" ({len(measure.samples)})" if len(measure.samples) > 1 else ""
    return interval(*found) + count


def machine(environment: Mapping[str, Any]) -> str:
    """Processor, cores, memory and GPUs, as far as they are known."""
    parts = [str(environment.get("processor") or "unknown processor")]
    if cores := environment.get("cores"):
        parts.append(f"{cores} cores")
    if memory := environment.get("memory_gib"):
        parts.append(f"{memory:g} GiB" if isinstance(memory, int | float) else str(memory))
    gpus = environment.get("gpus")
    for gpu, count in Counter(map(str, gpus if isinstance(gpus, list) else ())).items():
        parts.append(f"{count} x {gpu}" if count > 1 else gpu)
    return ", ".join([*parts, str(environment.get("system") or "")]).rstrip(", ")


def software(environment: Mapping[str, Any]) -> str:
    """Python and the packages with their versions, and the commit."""
    packages = environment.get("packages")
    listed = [f"{name} {version}" for name, version in packages.items()] if isinstance(packages, Mapping) else []
    revision = environment.get("revision")
    parts = [f"Python {environment.get('python', ABSENT)}", *listed, *([f"commit {revision}"] if revision else [])]
    return ", ".join(parts)


def day(date: str) -> str:
    """Of an ISO time; the text itself where it is none."""
    try:
        return datetime.fromisoformat(date).date().isoformat()
    except ValueError:
        return date
