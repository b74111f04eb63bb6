"""Counting and measuring from any thread, and the thread that hands the results to Triton's `/metrics`."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from server.metric_names import METRIC_BY_NAME, METRICS, Kind, MetricSpec

logger = logging.getLogger(__name__)

Label: TypeAlias = str | int

INFINITY = math.inf
# An observation costs one exchange with the server's process, which other work of the model goes through as well.
OBSERVATIONS_PER_FLUSH = 2_000
# Beyond this many observations that wait, new ones are dropped; a few MB.
MAX_PENDING = 20_000
FLUSH_SECONDS = 0.5
CLOSE_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Series:
    """One metric with values for its labels.

    Attributes:
        value: of a counter or gauge; the sum of a histogram's observations.
        observed: how many observations a histogram has had.
        exported: what the exporter knows of `value`; None before it knows of the series, NaN before a gauge's first.
    """

    spec: MetricSpec
    labels: Mapping[str, str] = field(default_factory=dict)
    value: float = 0.0
    observed: int = 0
    exported: float | None = None


class Exporter(Protocol):
    """Where metrics go. A call that raises must not have had an effect: it is made again."""

    def declare(self, series: Series) -> None:
        """Make a series known, at zero."""

    def increment(self, series: Series, amount: float) -> None:
        """Add to a counter."""

    def set(self, series: Series, value: float) -> None:
        """Set a gauge."""

    def observe(self, series: Series, value: float) -> None:
        """Add an observation to a histogram."""


class Metrics:
    """The values of all metrics of `server.metric_names`; every method may be called from any thread.

    Names are given without the prefix. Series that can be known beforehand start at zero; others with their first use.

    Args:
        now: Unix time in seconds.

    Raises (from `count`, `gauge`, `observe`, `value` and `sum`):
        ValueError: an unknown metric or label, another kind, a value that is not finite, or a count below zero.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._series: dict[tuple[str, ...], Series] = {}
        # Found by the labels as the caller orders and types them, which spares the hot path all checks.
        self._counters: dict[tuple[Label, ...], Series] = {}
        self._gauges: dict[tuple[Label, ...], Series] = {}
        self._histograms: dict[tuple[Label, ...], Series] = {}
        self._pending: deque[tuple[Series, float]] = deque()
        for spec in METRICS:
            for values in spec.known_labels:
                self._series[(spec.name, *values)] = Series(spec, dict(zip(spec.labels, values, strict=True)))
        self._dropped = self._series[("dropped_observations_total",)]
        self.gauge("start_time_seconds", now())

    def count(self, name: str, value: float = 1.0, **labels: Label) -> None:
        """Add to a counter."""
        if not 0.0 <= value < INFINITY:
            raise ValueError(f"counter {name} cannot grow by {value}")
        series = self._counters.get((name, *labels, *labels.values())) or self._find("counter", name, labels)
        with self._lock:
            series.value += value

    def gauge(self, name: str, value: float, **labels: Label) -> None:
        """Set a gauge."""
        if not -INFINITY < value < INFINITY:
            raise ValueError(f"gauge {name} cannot be {value}")
        series = self._gauges.get((name, *labels, *labels.values())) or self._find("gauge", name, labels)
        series.value = value

    def observe(self, name: str, value: float, **labels: Label) -> None:
        """Add an observation to a histogram."""
        if not -INFINITY < value < INFINITY:
            raise ValueError(f"histogram {name} cannot take {value}")
        series = self._histograms.get((name, *labels, *labels.values())) or self._find("histogram", name, labels)
        with self._lock:
            series.value += value
            series.observed += 1
            if len(self._pending) < MAX_PENDING:
                self._pending.append((series, value))
            else:
                self._dropped.value += 1

    def value(self, name: str, **labels: Label) -> float:
        """What a counter or gauge stands at, or how many observations a histogram has had; 0 before the first use."""
        series = self._existing(name, labels)
        if series is None:
            return 0.0
        return float(series.observed) if series.spec.kind == "histogram" else series.value

    def sum(self, name: str, **labels: Label) -> float:
        """The sum of a histogram's observations; 0 before the first."""
        series = self._existing(name, labels)
        return series.value if series else 0.0

    def flush(self, exporter: Exporter) -> None:
        """Hand on what has changed since the last flush, which must have been to the same exporter.

        Nothing is lost or counted twice: what the exporter raises at is handed on by the next flush, and does not hold
        up other series.

        Raises:
            Exception: the first that the exporter raised, once everything else has been handed on.
        """
        with self._flushing:
            with self._lock:
                known = list(self._series.values())
            failures = [failure for series in known if (failure := _attempt(_export_value, exporter, series))]
            failures += self._export_observations(exporter)
        if failures:
            raise failures[0]

    def _export_observations(self, exporter: Exporter) -> list[Exception]:
        failures: list[Exception] = []
        failed: set[Series] = set()
        kept: list[tuple[Series, float]] = []
        try:
            for _ in range(min(len(self._pending), OBSERVATIONS_PER_FLUSH)):
                kept.append(self._pending.popleft())
                series, value = kept[-1]
                if series in failed or series.exported is None:
                    continue
                if failure := _attempt(exporter.observe, series, value):
                    failures.append(failure)
                    failed.add(series)
                else:
                    kept.pop()
        finally:
            self._pending.extendleft(reversed(kept))
        return failures

    def _existing(self, name: str, labels: Mapping[str, Label]) -> Series | None:
        return self._series.get(_key(_spec(name), labels))

    def _find(self, kind: Kind, name: str, labels: Mapping[str, Label]) -> Series:
        """The series of labels that are seen for the first time, or in another order."""
        spec = _spec(name)
        if spec.kind != kind:
            raise ValueError(f"metric {name} is a {spec.kind}, not a {kind}")
        key = _key(spec, labels)
        aliases = {"counter": self._counters, "gauge": self._gauges, "histogram": self._histograms}[kind]
        with self._lock:
            series = self._series.setdefault(key, Series(spec, dict(zip(spec.labels, key[1:], strict=True))))
            aliases[(name, *labels, *labels.values())] = series
        return series


def _spec(name: str) -> MetricSpec:
    spec = METRIC_BY_NAME.get(name)
    if spec is None:
        raise ValueError(f"there is no metric {name!r}; declare it in server/metric_names.py")
    return spec


def _key(spec: MetricSpec, labels: Mapping[str, Label]) -> tuple[str, ...]:
    if labels.keys() != set(spec.labels):
        raise ValueError(f"metric {spec.name} has the labels {list(spec.labels)}, not {list(labels)}")
    if spec.choices and labels[spec.labels[0]] not in spec.choices:
        raise ValueError(f"{spec.labels[0]} of {spec.name} is one of {list(spec.choices)}, not {labels}")
    return (spec.name, *(str(labels[name]) for name in spec.labels))


def _attempt(action: Callable[..., None], *arguments: object) -> Exception | None:
    """What an exporter raises, whose exceptions may be of any kind."""
    try:
        action(*arguments)
    except Exception as error:  # one series that cannot be exported must not hold up the others
        return error
    return None


def _export_value(exporter: Exporter, series: Series) -> None:
    if series.exported is None:
        exporter.declare(series)
        series.exported = math.nan if series.spec.kind == "gauge" else 0.0
    # Other threads go on counting, so what is handed on and what is noted must be the same reading.
    value = series.value
    if series.spec.kind == "histogram" or value == series.exported:
        return
    if series.spec.kind == "gauge":
        exporter.set(series, value)
    else:
        exporter.increment(series, value - series.exported)
    series.exported = value


@functools.cache
def _triton_family(triton: Any, spec: MetricSpec) -> Any:
    kind = getattr(triton.MetricFamily, spec.kind.upper())
    return triton.MetricFamily(name=spec.full_name, description=spec.help, kind=kind)


@functools.cache
def _triton_metric(triton: Any, spec: MetricSpec, labels: tuple[tuple[str, str], ...]) -> Any:
    """Once per process, and kept to its end: when one of two metrics with equal labels goes, the server crashes."""
    buckets = {"buckets": list(spec.buckets)} if spec.kind == "histogram" else {}
    return _triton_family(triton, spec).Metric(labels=dict(labels), **buckets)


class TritonExporter:
    """Triton's custom metrics. Each call is an exchange with the server's process of 10 us or more.

    Args:
        triton: the module `triton_python_backend_utils`.
        labels: added to every series. Two processes of one server must not export the same series, so these must
            differ when more than one model instance exports.
    """

    def __init__(self, triton: Any, labels: Mapping[str, str] | None = None) -> None:
        self._triton = triton
        self._labels = tuple((labels or {}).items())
        self._has_histograms = hasattr(triton.MetricFamily, "HISTOGRAM")
        if not self._has_histograms:
            logger.warning("this Triton has no histograms in custom metrics (2.51.0 has): no latencies in /metrics")

    def declare(self, series: Series) -> None:
        if self._has_histograms or series.spec.kind != "histogram":
            self._metric(series)

    def increment(self, series: Series, amount: float) -> None:
        self._metric(series).increment(amount)

    def set(self, series: Series, value: float) -> None:
        self._metric(series).set(value)

    def observe(self, series: Series, value: float) -> None:
        if self._has_histograms:
            self._metric(series).observe(value)

    def _metric(self, series: Series) -> Any:
        return _triton_metric(self._triton, series.spec, (*series.labels.items(), *self._labels))


class MetricsUpdater:
    """One thread that flushes metrics until it is closed, and once more then.

    Args:
        interval: seconds between flushes.
    """

    def __init__(self, metrics: Metrics, exporter: Exporter, interval: float = FLUSH_SECONDS) -> None:
        self._metrics = metrics
        self._exporter = exporter
        self._interval = interval
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Flush and stop; an exporter that hangs is left behind after `CLOSE_SECONDS`."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                logger.warning("exporting metrics hangs; the last values are lost")

    def _run(self) -> None:
        self._flush()
        while not self._closing.wait(self._interval):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        failure = _attempt(self._metrics.flush, self._exporter)
        if failure and not self._failing:
            logger.error("exporting metrics failed; it is tried again, silently, until it works", exc_info=failure)
        if self._failing and not failure:
            logger.info("exporting metrics works again")
        self._failing = failure is not None
