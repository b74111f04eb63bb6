"""A server's metrics as numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from server.errors import ServerError
from server.launch import fetch
from server.metric_names import METRIC_BY_NAME, METRICS, PREFIX

LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)$")
# Of a histogram's bucket.
BOUND = re.compile(r'\ble="([^"]+)"')
FETCH_SECONDS = 5.0
# Of metrics that a load moves and that say something when they are added up.
COUNTERS = tuple(metric.name for metric in METRICS if metric.kind == "counter")

Samples = Mapping[str, float]


def parse_metrics(text: str) -> dict[str, float]:
    """Value by name and labels, as they are written."""
    found = {}
    for line in text.splitlines():
        if match := LINE.match(line):
            labels = match["labels"]
            found[f"{match['name']}{{{labels}}}" if labels else match["name"]] = float(match["value"])
    return found


def read_metrics(url: str) -> dict[str, float]:
    """The metrics at an address, `http://host:port/metrics`.

    Raises:
        ServerError: nobody answers there.
    """
    text = fetch(url, FETCH_SECONDS)
    if text is None:
        raise ServerError(f"no metrics at {url}; give the address of the server's metrics port, or none")
    return parse_metrics(text)


def total(samples: Samples, name: str, suffix: str = "") -> float:
    """Of all series of one of our metrics, named without the prefix; a histogram has a `_sum` and a `_count`."""
    full = METRIC_BY_NAME[name].full_name + suffix
    return sum(value for series, value in samples.items() if series.partition("{")[0] == full)


def bucket_rises(before: Samples, after: Samples, name: str) -> list[tuple[float, float]]:
    """(upper bound, by how much the count of what lies within it grew) of one of our histograms, over all labels."""
    full = METRIC_BY_NAME[name].full_name + "_bucket"
    rises: dict[float, float] = {}
    for series, value in after.items():
        if series.partition("{")[0] == full and (bound := BOUND.search(series)):
            place = float(bound[1])
            rises[place] = rises.get(place, 0.0) + value - before.get(series, 0.0)
    return sorted(rises.items())


def grown(before: Samples, after: Samples) -> dict[str, float]:
    """By how much our counters grew, without those that did not, by name and labels without the prefix."""
    names = {METRIC_BY_NAME[name].full_name for name in COUNTERS}
    rise = {
        series.removeprefix(PREFIX): round(value - before.get(series, 0.0), 6)
        for series, value in after.items()
        if series.partition("{")[0] in names
    }
    return {series: value for series, value in sorted(rise.items()) if value}
