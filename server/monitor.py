"""Who hears of everything that the service does, and keeps figures, predictions, previews and traces of it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.admission import Admission
from server.checkpoints import Checkpoints
from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError, TimedOut
from server.job import FINAL, Bucket, Job, JobStatus, Plot
from server.metrics import Metrics
from server.preview import Previewer, PreviewProjection
from server.reply import Reply
from server.request import Request
from server.rows import Call
from server.tracing import Attribute, NoTracer, Phase, RequestSpan, Tracer, unix_times
from server.warm_up import Curves

logger = logging.getLogger(__name__)

OUTCOMES: tuple[tuple[type[ServerError], str], ...] = (
    (InvalidRequest, "invalid"),
    (NotFound, "invalid"),
    (TimedOut, "timeout"),
    (Overloaded, "overload"),
    (Cancelled, "cancelled"),
    (ServerError, "error"),
)


def outcome(error: ServerError | None) -> str:
    """How a request ended, in one word."""
    return "ok" if error is None else next(name for kind, name in OUTCOMES if isinstance(error, kind))


def plot_labels(plot: Plot) -> dict[str, str]:
    """Where jobs are drawn, as metrics name it."""
    return {"model": plot.checkpoint, "bucket": f"{plot.height}x{plot.width}"}


class Monitor:
    """Hears of the loop (`server.loop.Watcher`), of the decoder (`server.decoder.Listener`) and of the service.

    Args:
        admission: whose predictions are to be kept right.
        curves: to refine by every call.
        max_rows: rows of one UNet call, at most.
        metrics, tracer: where to write.
        clock: seconds, the jobs' own.
        on_broken: called when the engine gives nothing but failures.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        admission: Admission,
        curves: Curves,
        max_rows: int,
        metrics: Metrics,
        tracer: Tracer | None,
        clock: Callable[[], float],
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self.metrics = metrics
        self._admission = admission
        self._curves = curves
        self._tracer = tracer or NoTracer()
        self._clock = clock
        self._cache_counts = (0, 0)
        self._max_rows = max_rows
        self._on_broken = on_broken
        self._checkpoints = checkpoints
        projections = {name: PreviewProjection(pipeline.spec) for name, pipeline in checkpoints.items()}
        self._previewer = Previewer(projections, self._deliver_preview)

    def start(self) -> None:
        for (model, component), size in self._checkpoints.weights.items():
            self.metrics.gauge("weights_bytes", size, model=model, component=component)
        self._previewer.start()

    def close(self) -> None:
        self._previewer.close()
        self._tracer.close()

    def turned(self) -> None:
        self.metrics.gauge("loop_heartbeat_timestamp_seconds", time.time())

    def called(self, call: Call, moved: Sequence[Job], padded: int, seconds: float) -> None:
        plot = call.jobs[0].bucket.plot
        labels = plot_labels(plot)
        self._curves(plot).observe(padded, seconds)
        self._admission.backlog.spend([(job.due, job.seconds) for job in moved])
        self.metrics.observe("step_seconds", seconds, **labels, rows=str(padded))
        self.metrics.observe("rows_per_call", call.rows, **labels)
        self.metrics.count("rows_total", call.rows, **labels)
        self.metrics.count("padded_rows_total", padded - call.rows, **labels)
        for job in moved:
            job.reply.step_done(self.expected)

    def estimated(self, job: Job) -> None:
        step, interval = job.calls_done, job.request.preview_interval
        if job.clean is not None and interval and step % interval == 0 and step < job.calls_total:
            self._previewer.submit(job, job.clean, step)

    def failed(self, jobs: Sequence[Job], retried: bool) -> None:
        self.metrics.count("failed_calls_total")
        if retried:
            self.metrics.count("retried_calls_total", len(jobs))

    def ended(self, job: Job) -> None:
        left = job.calls_left
        self._admission.backlog.change(job.due, -left * job.seconds, -1)
        if left:
            self._admission.refund(job.request, left * job.seconds)
        if job.status is JobStatus.CANCELLED:
            self.metrics.count("cancelled_steps_saved_total", left)

    def broke(self) -> None:
        self._on_broken()

    def decoded(self, images: int, seconds: float) -> None:
        self._admission.decode_seconds = seconds
        self.metrics.observe("decode_seconds", seconds)

    def encoded(self, job: Job, seconds: float) -> None:
        self.metrics.observe("encode_seconds", seconds)
        work = job.work
        self.metrics.count("images_total", model=work.checkpoint, width=str(work.width), height=str(work.height))

    def expected(self, reply: Reply) -> Mapping[str, Any]:
        """Jobs ahead of a request, and seconds until its images are done."""
        open_jobs = [job for job in reply.jobs if job.status not in FINAL]
        if not open_jobs:
            return {"queue_position": 0, "seconds_left": round(self._admission.decode_seconds, 3)}
        last = max(open_jobs, key=lambda job: job.due)
        ahead, jobs = self._admission.backlog.ahead(last.due)
        alone = last.calls_left * self._curves(last.bucket.plot).seconds(last.rows)
        waiting = 0 if last.slot >= 0 else max(0, jobs - len(open_jobs))
        return {"queue_position": waiting, "seconds_left": round(max(ahead, alone) + self._admission.decode_seconds, 3)}

    def state(self, counts: Mapping[Bucket, tuple[int, int]]) -> None:
        """How many jobs wait and run; buckets that differ in tokens alone are one in the metrics."""
        plots: defaultdict[Plot, list[int]] = defaultdict(lambda: [0, 0])
        for bucket, (waiting, begun) in counts.items():
            plots[bucket.plot][0] += waiting
            plots[bucket.plot][1] += begun
        for plot, (waiting, begun) in plots.items():
            labels = plot_labels(plot)
            self.metrics.gauge("waiting", waiting, **labels)
            self.metrics.gauge("running", begun, **labels)
            self.metrics.gauge("row_cap", self._curves(plot).row_cap(self._max_rows), **labels)
        self.metrics.gauge("predicted_wait_seconds", self._admission.backlog.total()[0])
        caches = [pipeline.embedding_cache for pipeline in self._checkpoints.values()]
        found = sum(hits for hits, _ in caches), sum(misses for _, misses in caches)
        for name, now, before in zip(("hits", "misses"), found, self._cache_counts, strict=True):
            self.metrics.count(f"embedding_cache_{name}_total", now - before)
        self._cache_counts = found

    def refused(self, error: ServerError) -> None:
        """A request was not let in."""
        self.metrics.count("requests_total", outcome=outcome(error))

    def looked_up(self, hit: bool) -> None:
        """The response cache was asked."""
        self.metrics.count("response_cache_hits_total" if hit else "response_cache_misses_total")

    def answered_from_cache(self, request: Request) -> None:
        self.metrics.count("requests_total", outcome="ok")

    def answered(self, reply: Reply) -> None:
        """A request that was let in has its answer."""
        now = self._clock()
        ended = outcome(reply.error)
        self.metrics.count("requests_total", outcome=ended)
        if reply.error is None:
            self.metrics.observe("request_seconds", now - reply.arrival)
        for job in reply.jobs:
            if job.started:
                self.metrics.observe("queue_seconds", job.started - job.arrival)
                self.metrics.observe("denoise_seconds", (job.ended or now) - job.started)
        request = reply.request
        extra = {"request_id": request.request_id}
        logger.info("%s after %.3f s: %d x %d steps", ended, now - reply.arrival, request.num_images,
                    request.num_inference_steps, extra=extra)  # fmt: skip
        if not isinstance(self._tracer, NoTracer):
            self._tracer.record(self._span(reply, now))

    def _span(self, reply: Reply, now: float) -> RequestSpan:
        unix, request = unix_times(self._clock), reply.request
        phases = [Phase("queue", unix(reply.arrival), unix(min((j.started or now for j in reply.jobs), default=now)))]
        begun = [job for job in reply.jobs if job.started]
        if begun:
            end = max(job.ended or now for job in begun)
            rows = {"rows": sum(job.rows_total for job in begun)}
            phases.append(Phase("denoise", unix(min(job.started for job in begun)), unix(end), rows))
            phases.append(Phase("decode", unix(end), unix(now)))
        attributes: dict[str, Attribute] = {
            "request_id": request.request_id,
            "steps": request.num_inference_steps,
            "sampler": request.sampler,
            "model": request.model,
            "task": request.task,
            "height": request.height,
            "width": request.width,
            "images": request.num_images,
        }
        error = None if reply.error is None else str(reply.error)
        return RequestSpan(unix(reply.arrival), unix(now), tuple(phases), attributes, error, reply.traceparent)

    def _deliver_preview(self, job: Job, step: int, data: bytes) -> None:
        if not job.reply.previews:
            self.metrics.observe("first_preview_seconds", self._clock() - job.reply.arrival)
        job.reply.add_preview(job.index, step, data)
