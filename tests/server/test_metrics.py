"""server.metrics: whatever happens, what is exported is what was counted, once."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import server.metrics
from server.metric_names import METRIC_BY_NAME, METRICS, OUTCOMES, MetricSpec
from server.metrics import Label, Metrics, MetricsUpdater, Series, TritonExporter

Key = tuple[str, tuple[str, ...]]


def key(series: Series) -> Key:
    return series.spec.name, tuple(series.labels.values())


class Recorder:
    """An exporter that keeps what it is given; `refuses` says before each call whether it raises."""

    def __init__(self, refuses: Callable[[Key], bool] = lambda key: False) -> None:
        self.refuses = refuses
        self.calls: list[tuple[str, Key]] = []
        self.values: dict[Key, float] = {}
        self.observations: dict[Key, list[float]] = defaultdict(list)

    def _take(self, operation: str, series: Series) -> Key:
        if self.refuses(key(series)):
            raise ConnectionError(f"{operation} {key(series)}")
        self.calls.append((operation, key(series)))
        return key(series)

    def declare(self, series: Series) -> None:
        self.values[self._take("declare", series)] = 0.0

    def increment(self, series: Series, amount: float) -> None:
        assert amount > 0
        self.values[self._take("increment", series)] += amount

    def set(self, series: Series, value: float) -> None:
        self.values[self._take("set", series)] = value

    def observe(self, series: Series, value: float) -> None:
        assert key(series) in self.values
        self.observations[self._take("observe", series)].append(value)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(now=lambda: 1000.0)


@pytest.mark.parametrize("spec", METRICS, ids=lambda spec: spec.name)
def test_names_follow_prometheus(spec: MetricSpec) -> None:
    assert re.fullmatch(r"aquatint_[a-z]+(_[a-z]+)*", spec.full_name)
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    assert not spec.name.endswith(("_bucket", "_sum", "_count"))
    assert spec.help
    assert not spec.help.endswith(".")
    assert not set(spec.labels) & {"le", "quantile", "job", "instance", "name", "value", "self"}
    assert bool(spec.buckets) == (spec.kind == "histogram")
    assert list(spec.buckets) == sorted(set(spec.buckets))
    assert len(spec.labels) == 1 or not spec.choices


def test_buckets_span_what_is_measured() -> None:
    spans = {spec.name: (spec.buckets[0], spec.buckets[-1]) for spec in METRICS if spec.buckets}
    assert spans["step_seconds"] == (0.001, 10.0)
    assert spans["request_seconds"] == (0.05, 600.0)
    assert spans["rows_per_call"] == (1, 128)
    assert len(METRIC_BY_NAME) == len(METRICS)


def test_values_are_kept_per_label(metrics: Metrics) -> None:
    metrics.count("requests_total", outcome="ok")
    metrics.count("requests_total", 2, outcome="error")
    metrics.count("rows_total", 16, model="m", bucket="512x768")
    metrics.gauge("running", 5, model="m", bucket="512x512")
    metrics.gauge("running", 3, model="m", bucket="512x512")
    metrics.observe("queue_seconds", 0.5)
    metrics.observe("queue_seconds", 0.25)
    assert {outcome: metrics.value("requests_total", outcome=outcome) for outcome in ("ok", "error", "invalid")} == {
        "ok": 1,
        "error": 2,
        "invalid": 0,
    }
    assert metrics.value("rows_total", model="m", bucket="512x768") == 16
    assert metrics.value("running", model="m", bucket="512x512") == 3
    assert metrics.value("running", model="m", bucket="64x64") == 0
    assert (metrics.value("queue_seconds"), metrics.sum("queue_seconds")) == (2, 0.75)
    assert metrics.sum("rows_per_call", model="m", bucket="512x512") == 0
    assert metrics.value("start_time_seconds") == 1000


def test_a_series_is_one_however_its_labels_are_written(metrics: Metrics) -> None:
    metrics.count("images_total", model="m", height=512, width=768)
    metrics.count("images_total", width=768, model="m", height=512)
    metrics.count("images_total", model="m", width="768", height="512")
    metrics.count("images_total", model="m", width=512, height=768)
    assert metrics.value("images_total", model="m", height=512, width=768) == 3
    assert metrics.value("images_total", model="m", height=768, width=512) == 1
    recorder = Recorder()
    metrics.flush(recorder)
    assert recorder.values[("images_total", ("m", "512", "768"))] == 3


WRONG: list[tuple[Callable[[Metrics], object], str]] = [
    (lambda m: m.count("banana_total"), r"no metric 'banana_total'.*metric_names\.py"),
    (lambda m: m.value("aquatint_requests_total", outcome="ok"), "no metric 'aquatint_requests_total'"),
    (lambda m: m.count("requests_total"), r"has the labels \['outcome'\], not \[\]"),
    (lambda m: m.count("requests_total", outcom="ok"), r"has the labels \['outcome'\]"),
    (lambda m: m.count("requests_total", outcome="fine"), r"is one of \['ok', .*fine"),
    (lambda m: m.value("requests_total", outcome="fine"), r"is one of \['ok', .*fine"),
    (lambda m: m.count("retried_calls_total", bucket="1x1"), r"has the labels \[\]"),
    (lambda m: m.gauge("running", 1), r"has the labels \['model', 'bucket'\]"),
    (lambda m: m.count("running", model="m", bucket="1x1"), "is a gauge, not a counter"),
    (lambda m: m.gauge("queue_seconds", 1), "is a histogram, not a gauge"),
    (lambda m: m.observe("retried_calls_total", 1), "is a counter, not a histogram"),
    (lambda m: m.count("retried_calls_total", -1), "cannot grow by -1"),
    (lambda m: m.count("retried_calls_total", float("nan")), "cannot grow by nan"),
    (lambda m: m.count("retried_calls_total", float("inf")), "cannot grow by inf"),
    (lambda m: m.gauge("predicted_wait_seconds", float("inf")), "cannot be inf"),
    (lambda m: m.observe("queue_seconds", float("nan")), "cannot take nan"),
]


@pytest.mark.parametrize(("use", "message"), WRONG)
def test_wrong_use_is_told_at_once_and_leaves_nothing(
    metrics: Metrics, use: Callable[[Metrics], object], message: str
) -> None:
    before, after = Recorder(), Recorder()
    metrics.flush(before)
    with pytest.raises(ValueError, match=message):
        use(metrics)
    metrics.flush(after)
    assert after.calls == []


def test_what_is_known_beforehand_starts_at_zero(metrics: Metrics) -> None:
    recorder = Recorder()
    metrics.flush(recorder)
    declared = Counter(name for operation, (name, _) in recorder.calls if operation == "declare")
    assert declared["requests_total"] == len(OUTCOMES)
    assert declared["queue_seconds"] == declared["failed_calls_total"] == 1
    # A heartbeat at zero would be a dead loop, a row cap at zero a server that cannot work.
    gauges = {key[0] for _, key in recorder.calls if METRIC_BY_NAME[key[0]].kind == "gauge"}
    assert gauges == {"start_time_seconds"}


def test_only_changes_are_exported(metrics: Metrics) -> None:
    metrics.gauge("row_cap", 16, model="m", bucket="512x512")
    metrics.flush(Recorder())
    recorder = Recorder()
    metrics.gauge("row_cap", 16, model="m", bucket="512x512")
    metrics.flush(recorder)
    assert recorder.calls == []


def test_counts_are_summed_before_they_are_exported(metrics: Metrics) -> None:
    recorder = Recorder()
    metrics.flush(recorder)
    recorder.calls.clear()
    for _ in range(100):
        metrics.count("retried_calls_total")
    metrics.flush(recorder)
    assert recorder.calls == [("increment", ("retried_calls_total", ()))]
    assert recorder.values[("retried_calls_total", ())] == 100


def test_a_gauge_at_zero_is_exported(metrics: Metrics) -> None:
    recorder = Recorder()
    metrics.gauge("waiting", 0, model="m", bucket="64x64")
    metrics.flush(recorder)
    assert ("set", ("waiting", ("m", "64x64"))) in recorder.calls


# (metric, labels) of each kind, some known beforehand and some not.
USES: list[tuple[str, dict[str, Label]]] = [
    ("requests_total", {"outcome": "ok"}),
    ("images_total", {"model": "m", "height": 64, "width": 128}),
    ("running", {"model": "m", "bucket": "64x64"}),
    ("waiting", {"model": "m", "bucket": "64x64"}),
    ("queue_seconds", {}),
    ("step_seconds", {"model": "m", "bucket": "64x64", "rows": 4}),
    ("step_seconds", {"model": "m", "bucket": "64x64", "rows": 8}),
]
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(USES), st.integers(0, 1 << 30)),
        st.lists(st.booleans(), min_size=1, max_size=40),  # a flush whose exporter refuses at these calls
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_nothing_is_lost_or_counted_twice(operations: list[Any]) -> None:
    metrics, recorder = Metrics(), Recorder()
    totals: Counter[Key] = Counter()
    gauges: dict[Key, float] = {}
    observed: dict[Key, list[float]] = defaultdict(list)
    for operation in operations:
        if isinstance(operation, list):
            refusals = iter(operation)
            recorder.refuses = lambda key, refusals=refusals: next(refusals, False)  # type: ignore[misc]
            try:
                metrics.flush(recorder)
                assert not any(operation[: len(operation) - len(list(refusals))])
            except ConnectionError:
                assert any(operation)
            continue
        (name, labels), number = operation
        where = (name, tuple(map(str, labels.values())))
        match METRIC_BY_NAME[name].kind:
            case "counter":
                metrics.count(name, number, **labels)
                totals[where] += number
            case "gauge":
                metrics.gauge(name, number, **labels)
                gauges[where] = number
            case "histogram":
                metrics.observe(name, number, **labels)
                observed[where].append(number)
    recorder.refuses = lambda key: False
    metrics.flush(recorder)
    assert {where: recorder.values[where] for where in totals} == totals
    assert {where: recorder.values[where] for where in gauges} == gauges
    assert recorder.observations == observed
    assert Counter(where for operation, where in recorder.calls if operation == "declare").most_common(1)[0][1] == 1


def test_one_series_that_fails_does_not_hold_up_the_others(metrics: Metrics) -> None:
    recorder = Recorder(lambda key: key[0] in ("queue_seconds", "requests_total"))
    for value in (1.0, 2.0, 3.0):
        metrics.count("requests_total", outcome="ok")
        metrics.count("retried_calls_total")
        metrics.observe("queue_seconds", value)
        metrics.observe("decode_seconds", value)
    with pytest.raises(ConnectionError):
        metrics.flush(recorder)
    assert recorder.values[("retried_calls_total", ())] == 3
    assert recorder.observations == {("decode_seconds", ()): [1.0, 2.0, 3.0]}
    recorder.refuses = lambda key: False
    metrics.flush(recorder)
    assert recorder.values[("requests_total", ("ok",))] == 3
    assert recorder.observations[("queue_seconds", ())] == [1.0, 2.0, 3.0]
    assert recorder.observations[("decode_seconds", ())] == [1.0, 2.0, 3.0]


def test_a_failing_exporter_is_asked_once_per_series(metrics: Metrics) -> None:
    recorder = Recorder()
    metrics.flush(recorder)
    for value in range(1000):
        metrics.observe("queue_seconds", value)
    asked: list[Key] = []
    recorder.refuses = lambda key: not asked.append(key)  # type: ignore[func-returns-value]
    with pytest.raises(ConnectionError):
        metrics.flush(recorder)
    assert asked == [("queue_seconds", ())]


def test_an_interrupted_flush_keeps_what_it_held(metrics: Metrics) -> None:
    recorder = Recorder()
    metrics.flush(recorder)
    for value in range(5):
        metrics.observe("queue_seconds", value)

    def interrupt(_: Key) -> bool:
        if len(recorder.observations[("queue_seconds", ())]) == 3:
            raise KeyboardInterrupt
        return False

    recorder.refuses = interrupt
    with pytest.raises(KeyboardInterrupt):
        metrics.flush(recorder)
    recorder.refuses = lambda key: False
    metrics.flush(recorder)
    assert recorder.observations[("queue_seconds", ())] == [0, 1, 2, 3, 4]


def test_observations_are_bounded_per_flush_and_in_memory(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.metrics, "OBSERVATIONS_PER_FLUSH", 20)
    monkeypatch.setattr(server.metrics, "MAX_PENDING", 50)
    for value in range(70):
        metrics.observe("queue_seconds", value)
    recorder = Recorder()
    exported = []
    for _ in range(3):
        metrics.flush(recorder)
        exported.append(len(recorder.observations[("queue_seconds", ())]))
    assert exported == [20, 40, 50]
    assert recorder.observations[("queue_seconds", ())] == list(range(50))
    assert recorder.values[("dropped_observations_total", ())] == 20
    assert metrics.value("queue_seconds") == 70


def test_threads_lose_nothing(metrics: Metrics) -> None:
    threads, rounds = 8, 400
    recorder, done = Recorder(), threading.Event()

    def work(number: int) -> None:
        for i in range(rounds):
            metrics.count("requests_total", outcome=OUTCOMES[i % 6])
            metrics.count("rows_total", number, model="m", bucket=f"{i % 50}x{i % 50}")
            metrics.observe("queue_seconds", number)

    def flush() -> None:
        while not done.is_set():
            metrics.flush(recorder)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    flushers = [threading.Thread(target=flush) for _ in range(2)]
    for thread in (*flushers, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in flushers:
        thread.join()
    for _ in range(2):
        metrics.flush(recorder)
    assert sum(recorder.values[("requests_total", (outcome,))] for outcome in OUTCOMES) == threads * rounds
    rows = sum(value for (name, _), value in recorder.values.items() if name == "rows_total")
    assert rows == rounds * sum(range(threads))
    assert Counter(recorder.observations[("queue_seconds", ())]) == Counter(dict.fromkeys(range(threads), rounds))


class FakeMetric:
    """As strict as the real one."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.value = 0.0
        self.observations: list[float] = []

    def increment(self, value: float) -> None:
        assert self.kind in (1, 2)
        assert value >= 0
        self.value += value

    def set(self, value: float) -> None:
        assert self.kind == 2
        self.value = value

    def observe(self, value: float) -> None:
        assert self.kind == 3
        self.observations.append(value)


class FakeTriton(ModuleType):
    """`triton_python_backend_utils`, which crashes the server when a metric exists twice."""

    def __init__(self, *, histograms: bool = True) -> None:
        super().__init__("triton_python_backend_utils")
        self.metrics: dict[tuple[str, tuple[tuple[str, str], ...]], FakeMetric] = {}
        self.families: dict[str, tuple[str, int]] = {}
        owner = self

        class MetricFamily:
            COUNTER = 1
            GAUGE = 2

            def __init__(self, *, name: str, description: str, kind: int) -> None:
                assert name not in owner.families
                owner.families[name] = description, kind
                self.name = name
                self.kind = kind

            def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> FakeMetric:  # noqa: N802
                where = self.name, tuple(labels.items())
                assert where not in owner.metrics
                assert (buckets is not None) == (self.kind == 3)
                assert isinstance(buckets, list | None)
                owner.metrics[where] = FakeMetric(self.kind)
                return owner.metrics[where]

        if histograms:
            MetricFamily.HISTOGRAM = 3  # type: ignore[attr-defined]
        self.MetricFamily = MetricFamily

    def of(self, name: str, **labels: str) -> FakeMetric:
        return self.metrics[(f"aquatint_{name}", tuple(labels.items()))]


def test_triton_gets_every_kind(metrics: Metrics) -> None:
    triton = FakeTriton()
    exporter = TritonExporter(triton)
    assert triton.metrics == {}
    metrics.count("requests_total", 3, outcome="ok")
    metrics.gauge("running", 2, model="m", bucket="64x64")
    metrics.observe("queue_seconds", 0.5)
    metrics.flush(exporter)
    metrics.count("requests_total", 4, outcome="ok")
    metrics.flush(exporter)
    assert triton.of("requests_total", outcome="ok").value == 7
    assert triton.of("requests_total", outcome="error").value == 0
    assert triton.of("running", model="m", bucket="64x64").value == 2
    assert triton.of("queue_seconds").observations == [0.5]
    assert triton.families["aquatint_running"] == (METRIC_BY_NAME["running"].help, 2)


def test_a_metric_is_made_once_per_process_whoever_exports() -> None:
    triton = FakeTriton()
    for _ in range(2):
        metrics = Metrics()
        metrics.count("retried_calls_total")
        metrics.flush(TritonExporter(triton))
    assert triton.of("retried_calls_total").value == 2


def test_instances_are_told_apart_by_labels(metrics: Metrics) -> None:
    triton = FakeTriton()
    metrics.count("requests_total", outcome="ok")
    metrics.flush(TritonExporter(triton, {"model_instance": "a_0"}))
    Metrics().flush(TritonExporter(triton, {"model_instance": "b_0"}))
    assert triton.of("requests_total", outcome="ok", model_instance="a_0").value == 1
    assert triton.of("requests_total", outcome="ok", model_instance="b_0").value == 0


def test_a_triton_without_histograms_still_counts(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    triton = FakeTriton(histograms=False)
    exporter = TritonExporter(triton)
    metrics.observe("queue_seconds", 1)
    metrics.count("retried_calls_total")
    metrics.flush(exporter)
    assert triton.of("retried_calls_total").value == 1
    assert "aquatint_queue_seconds" not in triton.families
    assert [record.message for record in caplog.records] == [
        "this Triton has no histograms in custom metrics (2.51.0 has): no latencies in /metrics"
    ]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


@pytest.fixture
def closing() -> Iterator[list[MetricsUpdater]]:
    """Updaters that are closed in the end."""
    updaters: list[MetricsUpdater] = []
    yield updaters
    for updater in updaters:
        updater.close()


def test_the_updater_flushes_at_start_between_and_at_the_end(metrics: Metrics, closing: list[MetricsUpdater]) -> None:
    recorder = Recorder()
    where: Key = ("retried_calls_total", ())
    closing.append(updater := MetricsUpdater(metrics, recorder, interval=0.01))
    updater.start()
    assert until(lambda: recorder.values.get(where) == 0)
    metrics.count("retried_calls_total")
    assert until(lambda: recorder.values[where] == 1)

    closing.append(slow := MetricsUpdater(metrics, recorder, interval=3600))
    updater.close()
    slow.start()
    metrics.count("retried_calls_total")
    slow.close()
    assert recorder.values[where] == 2


def test_an_updater_that_was_not_started_closes(metrics: Metrics) -> None:
    MetricsUpdater(metrics, Recorder()).close()


def test_the_updater_survives_and_tells_once(
    metrics: Metrics, closing: list[MetricsUpdater], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    attempts: list[Key] = []
    recorder = Recorder(lambda key: not attempts.append(key))  # type: ignore[func-returns-value]
    closing.append(updater := MetricsUpdater(metrics, recorder, interval=0.001))
    updater.start()
    metrics.count("retried_calls_total")
    assert until(lambda: attempts.count(("retried_calls_total", ())) > 5)
    recorder.refuses = lambda key: False
    assert until(lambda: recorder.values.get(("retried_calls_total", ())) == 1)
    updater.close()
    messages = [record.message.split(";")[0] for record in caplog.records]
    assert messages == ["exporting metrics failed", "exporting metrics works again"]
    assert caplog.records[0].exc_info is not None


def test_an_exporter_that_hangs_does_not_hold_up_the_end(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server.metrics, "CLOSE_SECONDS", 0.05)
    release = threading.Event()
    updater = MetricsUpdater(metrics, Recorder(lambda key: not release.wait(20)))
    updater.start()
    updater.close()
    assert "hangs" in caplog.text
    release.set()
