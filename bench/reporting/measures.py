"""What every measurement says in the same words: figures that can be compared, and series that can be drawn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Better: TypeAlias = Literal["lower", "higher"]
Kind: TypeAlias = Literal["curve", "histogram", "timeline"]
# Of a list of samples so many are kept, evenly, so that a result stays a small file.
KEPT_SAMPLES = 1000
Series: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a measurement.

    Attributes:
        name: such as "latency p99 at 8"; unique within a result.
        value: what was measured; nan where that was not possible.
        unit: such as "ms", "images/s"; empty for ratios.
        better: which way is an improvement; None where neither is.
        samples: repetitions of the same figure, from which the noise is known; not parts of a distribution.
        low, high: where the figure may lie by what was repeated, where there are no samples to tell; one of them is
            infinite where that end is not known.
    """

    name: str
    value: float
    unit: str = ""
    better: Better | None = None
    samples: Sequence[float] = ()
    low: float | None = None
    high: float | None = None

    @classmethod
    def median(cls, name: str, samples: Sequence[float], unit: str = "", better: Better | None = None) -> Measure:
        """Of repetitions, of which there is at least one."""
        return cls(name, statistics.median(samples), unit, better, samples)


@dataclass(frozen=True, slots=True)
class Plot:
    """Something to draw.

    Attributes:
        kind: "curve" joins points; "histogram" counts the second of each pair around the first, the same width for
            all; "timeline" is a value that holds until the next point.
        x, y: labels with their units.
        series: points by the name of the line.
        logarithmic: the axis of the values, which is x of a histogram and y of the others.
    """

    title: str
    kind: Kind
    x: str
    y: str
    series: Series = field(default_factory=dict)
    logarithmic: bool = False


def distribution(samples: Sequence[float], bins: int | None = None) -> list[tuple[float, float]]:
    """The middles of equally wide bins from the least to the greatest sample, and how many lie in each.

    Args:
        bins: how many; by default as many as that number of samples fills (Rice's rule), at most 40.
    """
    if not samples:
        return []
    bins = bins or min(40, math.ceil(2 * len(samples) ** (1 / 3)))
    least, width = min(samples), (max(samples) - min(samples)) / bins
    if width == 0:
        return [(least, float(len(samples)))]
    counts = [0] * bins
    for sample in samples:
        counts[min(bins - 1, int((sample - least) / width))] += 1
    return [(least + (i + 0.5) * width, float(count)) for i, count in enumerate(counts)]


def thinned(values: Sequence[Any], kept: int = KEPT_SAMPLES) -> list[Any]:
    """At most so many of the values, evenly spread, the first and the last among them."""
    if len(values) <= kept:
        return list(values)
    return [values[round(i * (len(values) - 1) / (kept - 1))] for i in range(kept)]


def told(measures: Sequence[Measure], plots: Sequence[Plot] = ()) -> dict[str, Any]:
    """`measures` and `plots` as they stand in a result's JSON.

    Raises:
        ValueError: two figures or two plots have the same name.
    """
    for names in ([measure.name for measure in measures], [plot.title for plot in plots]):
        if len(set(names)) < len(names):
            raise ValueError(f"names come twice: {sorted(name for name in set(names) if names.count(name) > 1)}")
    return {
        "measures": {measure.name: _figure(measure) for measure in measures},
        "plots": [
            {
                "title": plot.title,
                "kind": plot.kind,
                "x": plot.x,
                "y": plot.y,
                "logarithmic": plot.logarithmic,
                "series": {name: _points(points) for name, points in plot.series.items()},
            }
            for plot in plots
        ],
    }


def _figure(measure: Measure) -> dict[str, Any]:
    figure: dict[str, Any] = {"value": _told(measure.value), "unit": measure.unit, "better": measure.better}
    if len(measure.samples):
        figure["samples"] = [float(sample) for sample in thinned(measure.samples) if math.isfinite(sample)]
    if measure.low is not None and measure.high is not None:
        figure |= {"low": _told(measure.low), "high": _told(measure.high)}
    return figure


def _points(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in thinned(points) if math.isfinite(x) and math.isfinite(y)]


def _told(value: float) -> float | None:
    """JSON has no word for what is not finite."""
    return float(value) if math.isfinite(value) else None
