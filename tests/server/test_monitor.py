"""server.monitor in a whole service on fake networks: figures, predictions and spans tell what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.component import PipelineSpec
from engines.errors import ProviderError
from server.checkpoints import Checkpoints
from server.config import ServerConfig
from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError, TimedOut
from server.loop import FAILURES_IN_A_ROW
from server.metrics import Metrics
from server.monitor import outcome
from server.pipeline import Pipeline
from server.service import Service
from server.tracing import RequestSpan
from tests.fakes import BlockableRunner, ListSink

# Where the pictures of these tests are drawn.
AT = {"model": "fake", "bucket": "64x64"}


class ListTracer:
    """Keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[RequestSpan] = []
        self.closed = False

    def record(self, request: RequestSpan) -> None:
        self.spans.append(request)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def tracer() -> ListTracer:
    return ListTracer()


@pytest.fixture
def broken() -> list[str]:
    return []


@pytest.fixture
def service(
    fake_export: Path, runners: dict[str, BlockableRunner], metrics: Metrics, tracer: ListTracer, broken: list[str]
) -> Iterator[Service]:
    config = ServerConfig(model=fake_export, provider="fake", step_seconds=((2, 0.002), (16, 0.002)), queue_limit=8)
    spec = PipelineSpec.read(fake_export)
    checkpoints = Checkpoints([Pipeline(spec, fake_export, runners, "fake")])
    made = Service(checkpoints, config, metrics, tracer, on_broken=lambda: broken.append("broken"))
    made.start()
    yield made
    runners["unet"].release()
    made.close()


def submit(service: Service, **fields: Any) -> ListSink:
    sink = ListSink()
    service.submit({name: [value] for name, value in {"prompt": "a", **fields}.items()}, sink)
    return sink


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (None, "ok"),
        (InvalidRequest("x"), "invalid"),
        (NotFound("x"), "invalid"),
        (TimedOut("x"), "timeout"),
        (Overloaded("x"), "overload"),
        (Cancelled("x"), "cancelled"),
        (ServerError("x"), "error"),
    ],
)
def test_every_answer_has_one_outcome(error: ServerError | None, word: str) -> None:
    assert outcome(error) == word


def test_a_picture_is_counted_once_with_all_its_parts(service: Service, metrics: Metrics) -> None:
    assert submit(service, num_inference_steps=5, num_images=2).wait()
    wait_for(lambda: not service.open_replies())
    assert metrics.value("requests_total", outcome="ok") == 1
    assert metrics.value("images_total", model="fake", height=64, width=64) == 2
    assert metrics.value("request_seconds") == 1
    assert metrics.value("queue_seconds") == metrics.value("denoise_seconds") == 2
    assert metrics.value("rows_total", **AT) == 2 * 2 * 5
    assert metrics.sum("rows_per_call", **AT) == 20
    assert time.time() - metrics.value("loop_heartbeat_timestamp_seconds") < 2


def test_refusals_are_counted_by_their_reason(
    service: Service, metrics: Metrics, runners: dict[str, BlockableRunner]
) -> None:
    runners["unet"].hold()
    with pytest.raises(InvalidRequest):
        submit(service, num_inference_steps=0)
    accepted = submit(service, num_images=8)
    with pytest.raises(Overloaded, match=r"retry after \d+ ms"):
        submit(service)
    runners["unet"].release()
    assert accepted.wait()
    assert metrics.value("requests_total", outcome="invalid") == 1
    assert metrics.value("requests_total", outcome="overload") == 1


def test_cancelled_work_is_counted_as_saved(
    service: Service, metrics: Metrics, runners: dict[str, BlockableRunner]
) -> None:
    sink = submit(service, num_inference_steps=400, request_id="x")
    wait_for(lambda: len(runners["unet"].rows) > 5)
    service.cancel("x")
    assert sink.wait()
    wait_for(lambda: metrics.value("cancelled_steps_saved_total") > 0)
    assert 300 < metrics.value("cancelled_steps_saved_total") < 400
    assert metrics.value("requests_total", outcome="cancelled") == 1


def test_after_everything_nothing_is_expected_any_more(service: Service, metrics: Metrics) -> None:
    sinks = [submit(service, num_inference_steps=30, seed=i, request_id=str(i)) for i in range(6)]
    service.cancel("3")
    for sink in sinks:
        assert sink.wait()
    wait_for(lambda: service.admission.backlog.total()[1] == 0)
    assert service.admission.backlog.total()[0] == pytest.approx(0.0, abs=1e-6)
    service.tick()
    assert metrics.value("waiting", **AT) == metrics.value("running", **AT) == 0
    assert metrics.value("row_cap", **AT) == 16


def test_a_request_that_waits_is_told_its_place(service: Service, runners: dict[str, BlockableRunner]) -> None:
    runners["unet"].hold()
    sinks = [submit(service, seed=0)]
    wait_for(lambda: any(job.slot >= 0 for reply in service.open_replies() for job in reply.jobs))
    sinks += [submit(service, seed=i, progress_interval=500) for i in range(1, 8)]
    wait_for(lambda: all(len(reply.jobs) == 1 for reply in service.open_replies()))
    service.tick()
    places = [sink.events[-1]["queue_position"] for sink in sinks if sink.events]
    assert len(places) == 7
    assert places == sorted(places)
    left = [sink.events[-1]["seconds_left"] for sink in sinks if sink.events]
    assert left == sorted(left)
    assert left[-1] > 0
    runners["unet"].release()
    for sink in sinks:
        assert sink.wait()


def test_a_request_that_waits_for_the_decoder_alone_has_no_place(
    service: Service, runners: dict[str, BlockableRunner]
) -> None:
    runners["vae_decoder"].hold()
    sink = submit(service, num_inference_steps=3, progress_interval=1)
    wait_for(lambda: len(sink.events) == 3 and not service.scheduler.has_unfinished)
    service.tick()
    runners["vae_decoder"].release()
    assert sink.wait()
    assert [event["step"] for event in sink.events] == [1, 2, 3]


def test_a_request_leaves_spans_of_its_phases(service: Service, tracer: ListTracer) -> None:
    sink = ListSink()
    fields: dict[str, list[object]] = {"prompt": ["a"], "num_inference_steps": [4], "request_id": ["x"]}
    service.submit(fields, sink, traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    assert sink.wait()
    wait_for(lambda: len(tracer.spans) == 1)
    span = tracer.spans[0]
    assert [phase.name for phase in span.phases] == ["queue", "denoise", "decode"]
    edges = [edge for phase in span.phases for edge in (phase.start, phase.end)]
    assert edges == sorted(edges)
    assert (span.start, span.end) == (edges[0], edges[-1])
    assert abs(span.end / 1e9 - time.time()) < 5
    assert span.attributes["request_id"] == "x"
    assert (span.attributes["model"], span.attributes["task"]) == ("fake", "text_to_image")
    assert span.traceparent is not None
    assert span.error is None


def test_an_engine_that_only_fails_is_reported(
    service: Service, runners: dict[str, BlockableRunner], broken: list[str], metrics: Metrics
) -> None:
    runners["unet"].failures = [ProviderError("device lost")] * FAILURES_IN_A_ROW
    sinks = [submit(service, seed=i) for i in range(8)]
    for sink in sinks:
        assert sink.wait()
        assert isinstance(sink.error, ServerError)
    assert not broken
    while runners["unet"].failures:
        assert submit(service).wait()
    assert broken
    assert metrics.value("failed_calls_total") == FAILURES_IN_A_ROW
    assert submit(service).wait()
