"""OpenTelemetry spans of answered requests; the only door to that library, which is optional."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias
from urllib.parse import urlsplit

from server.errors import StartupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

logger = logging.getLogger(__name__)

Attribute: TypeAlias = str | int | float | bool

SERVICE = "aquatint"
PATH = "/v1/traces"
EXPORT_SECONDS = 5.0
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a request (`queue`, `denoise`, `decode`); unix time in nanoseconds."""

    name: str
    start: int
    end: int
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """An answered request; unix time in nanoseconds.

    Attributes:
        attributes: names without prefix, such as `request_id`, `steps`, `sampler`, `height`, `width`, `images`, `rows`.
        error: what it was answered with, if not with images.
        traceparent: the client's W3C trace context; one that cannot be read is ignored.
    """

    start: int
    end: int
    phases: tuple[Phase, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    error: str | None = None
    traceparent: str | None = None


class Tracer(Protocol):
    """Where spans go; may be called from any thread."""

    def record(self, request: RequestSpan) -> None:
        """Take a finished request; returns at once, and drops it when too many wait to be sent."""

    def close(self) -> None:
        """Send what is left, within seconds."""


class NoTracer:
    """Tracing is off."""

    def record(self, request: RequestSpan) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


class OpenTelemetryTracer:
    """Spans by OpenTelemetry. The sampler and the resource follow the library's environment variables.

    Args:
        processor: takes finished spans.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
        # Its own hook at exit would wait for the collector a second time.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SERVICE)

    def record(self, request: RequestSpan) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {"traceparent": request.traceparent} if request.traceparent else {}
        parent = TraceContextTextMapPropagator().extract(carrier)
        span = self._tracer.start_span(
            "request", parent, SpanKind.SERVER, _prefixed(request.attributes), start_time=request.start
        )
        context = set_span_in_context(span)
        for phase in request.phases:
            child = self._tracer.start_span(
                phase.name, context, attributes=_prefixed(phase.attributes), start_time=phase.start
            )
            child.end(phase.end)
        if request.error is not None:
            span.set_status(Status(StatusCode.ERROR, request.error))
        span.end(request.end)

    def close(self) -> None:
        # With a collector that is away, the library tries every batch that waits, for seconds each.
        thread = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            logger.warning("the tracing collector does not answer; the last spans are lost")


def _prefixed(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"{SERVICE}.{name}": value for name, value in attributes.items()}


def open_tracer(endpoint: str | None) -> Tracer:
    """Spans to a collector by OTLP over HTTP, or nowhere without an endpoint.

    Args:
        endpoint: such as `http://localhost:4318`; without a path, `/v1/traces` is added.

    Raises:
        StartupError: the endpoint is no address, or the library is not installed.
    """
    if not endpoint:
        return NoTracer()
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise StartupError(f"tracing endpoint is {endpoint!r}; give an address such as http://localhost:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartupError(
            f"tracing to {endpoint} needs a library that is missing ({error}); "
            "`pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http`"
        ) from error
    address = endpoint if parts.path not in ("", "/") else parts._replace(path=PATH).geturl()
    exporter = OTLPSpanExporter(address, timeout=EXPORT_SECONDS)
    return OpenTelemetryTracer(BatchSpanProcessor(exporter))


def unix_times(clock: Callable[[], float], wall: Callable[[], int] = time.time_ns) -> Callable[[float], int]:
    """A function from seconds of a clock to unix nanoseconds, read off once so that a request's parts fit together."""
    seconds, nanoseconds = clock(), wall()
    return lambda moment: nanoseconds + round((moment - seconds) * 1e9)
