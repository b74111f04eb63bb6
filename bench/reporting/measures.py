"""What every measurement says in the same words: figures that can be compared, and series that can be drawn."""

from __future__ import annotations

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
        unit: such as "ms", "images/s"; empty for ratios.
        better: which way is an improvement; None where neither is.
        samples: repetitions of the same figure, from which the noise is known; not parts of a distribution.
        low, high: where the figure may lie by what was repeated, where there are no samples to tell.
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
        kind: "curve" joins points; "histogram" counts the second of each pair; "timeline" is a value that holds
            until the next point.
        x, y: labels with their units.
        series: points by the name of the line.
    """

    title: str
    kind: Kind
    x: str
    y: str
    series: Series = field(default_factory=dict)
    logarithmic: bool = False


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
                "series": {name: [list(point) for point in thinned(points)] for name, points in plot.series.items()},
            }
            for plot in plots
        ],
    }


def _figure(measure: Measure) -> dict[str, Any]:
    figure: dict[str, Any] = {"value": measure.value, "unit": measure.unit, "better": measure.better}
    if measure.samples:
        figure["samples"] = thinned(measure.samples)
    if measure.low is not None and measure.high is not None:
        figure |= {"low": measure.low, "high": measure.high}
    return figure
