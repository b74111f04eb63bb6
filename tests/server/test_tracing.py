"""server.tracing: the spans that a collector would get, without a collector."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import server.tracing
from server.errors import StartupError
from server.tracing import NoTracer, OpenTelemetryTracer, Phase, RequestSpan, Tracer, open_tracer, unix_times

START = 1_795_332_792_000_000_000
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUEST = RequestSpan(
    START,
    START + 900,
    (
        Phase("queue", START, START + 100),
        Phase("denoise", START + 100, START + 700, {"rows": 40}),
        Phase("decode", START + 700, START + 900),
    ),
    {"request_id": "r-1", "steps": 20, "sampler": "euler", "height": 512, "width": 768, "images": 1, "guided": True},
)


class Collected:
    """A tracer whose finished spans are kept."""

    def __init__(self) -> None:
        export = pytest.importorskip("opentelemetry.sdk.trace.export")
        in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        self.exporter: Any = in_memory.InMemorySpanExporter()
        self.tracer = OpenTelemetryTracer(export.SimpleSpanProcessor(self.exporter))

    def record(self, request: RequestSpan) -> dict[str, Any]:
        """Its spans, by name."""
        self.exporter.clear()
        self.tracer.record(request)
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    made = Collected()
    yield made
    made.tracer.close()


def test_a_request_is_a_span_with_its_parts_as_children(collected: Collected) -> None:
    spans = collected.record(REQUEST)
    assert {name: (span.start_time - START, span.end_time - START) for name, span in spans.items()} == {
        "request": (0, 900),
        "queue": (0, 100),
        "denoise": (100, 700),
        "decode": (700, 900),
    }
    request = spans["request"]
    assert request.parent is None
    assert request.kind.name == "SERVER"
    for name in ("queue", "denoise", "decode"):
        assert spans[name].parent.span_id == request.context.span_id
        assert spans[name].context.trace_id == request.context.trace_id


def test_attributes_have_a_prefix(collected: Collected) -> None:
    spans = collected.record(REQUEST)
    assert dict(spans["request"].attributes) == {
        f"aquatint.{name}": value for name, value in REQUEST.attributes.items()
    }
    assert dict(spans["denoise"].attributes) == {"aquatint.rows": 40}
    assert spans["request"].resource.attributes["service.name"] == "aquatint"


def test_every_request_is_a_trace_of_its_own(collected: Collected) -> None:
    traces = {collected.record(REQUEST)["request"].context.trace_id for _ in range(3)}
    assert len(traces) == 3


def test_an_error_is_the_status_of_the_request_alone(collected: Collected) -> None:
    spans = collected.record(RequestSpan(START, START + 9, REQUEST.phases[:1], error="the UNet call failed"))
    assert spans["request"].status.status_code.name == "ERROR"
    assert spans["request"].status.description == "the UNet call failed"
    assert spans["queue"].status.status_code.name == "UNSET"
    assert collected.record(REQUEST)["request"].status.status_code.name == "UNSET"


def with_parent(traceparent: str | None) -> RequestSpan:
    return RequestSpan(START, START + 9, traceparent=traceparent)


def test_the_clients_trace_goes_on(collected: Collected) -> None:
    span = collected.record(with_parent(f"00-{TRACE}-{PARENT}-01"))["request"]
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT


def test_a_trace_that_the_client_does_not_sample_is_not_recorded(collected: Collected) -> None:
    assert collected.record(with_parent(f"00-{TRACE}-{PARENT}-00")) == {}


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "x",
        "00-x-y-01",
        f"00-{TRACE}-{PARENT}",
        f"00-{'0' * 32}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        "ü\n",
    ],
)
def test_a_traceparent_that_cannot_be_read_is_ignored(collected: Collected, traceparent: str | None) -> None:
    assert collected.record(with_parent(traceparent))["request"].parent is None


def test_the_service_can_be_named_by_the_environment(collected: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "paintings")
    assert Collected().record(REQUEST)["request"].resource.attributes["service.name"] == "paintings"


def test_spans_come_from_any_thread(collected: Collected) -> None:
    collected.exporter.clear()
    threads = [threading.Thread(target=collected.tracer.record, args=(REQUEST,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = collected.exporter.get_finished_spans()
    assert len(spans) == 32
    assert len({span.context.trace_id for span in spans}) == 8


def test_a_collector_that_hangs_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    monkeypatch.setattr(server.tracing, "CLOSE_SECONDS", 0.05)
    release = threading.Event()
    processor = export.SpanProcessor()
    processor.shutdown = lambda: release.wait(20)
    OpenTelemetryTracer(processor).close()
    assert "does not answer" in caplog.text
    release.set()


@pytest.mark.parametrize("endpoint", [None, ""])
def test_without_an_endpoint_tracing_is_off_and_needs_no_library(
    endpoint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    tracer: Tracer = open_tracer(endpoint)
    assert isinstance(tracer, NoTracer)
    tracer.record(REQUEST)
    tracer.close()


def test_a_missing_library_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(StartupError, match="pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"):
        open_tracer("http://localhost:4318")


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "grpc://collector:4317", "http://", "http://a:99999", "//a", "x"]
)
def test_an_endpoint_that_is_no_address_is_told(endpoint: str) -> None:
    with pytest.raises(StartupError, match=r"tracing endpoint is '.*'; give an address such as http://localhost:4318"):
        open_tracer(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("https://collector/tenant/v1/traces", "https://collector/tenant/v1/traces"),
    ],
)
def test_the_path_of_the_protocol_is_added(endpoint: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    opened: list[str] = []

    class Exporter:
        def __init__(self, endpoint: str, timeout: float) -> None:
            opened.append(endpoint)

        def shutdown(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr(module, "OTLPSpanExporter", Exporter)
    open_tracer(endpoint).close()
    assert opened == [address]


def test_seconds_of_a_clock_become_unix_time() -> None:
    times = unix_times(lambda: 50.0, lambda: START)
    assert [times(moment) - START for moment in (50.0, 49.5, 50.000000001)] == [0, -500_000_000, 1]
