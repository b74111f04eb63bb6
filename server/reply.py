"""The answer to one request: tells of its progress, gathers its images, and answers exactly once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from server.errors import Cancelled, ServerError, TimedOut
from server.request import Request

if TYPE_CHECKING:
    from server.job import Job

logger = logging.getLogger(__name__)

Timing = Mapping[str, float]
WORST = ("queue_seconds", "denoise_seconds", "decode_seconds")


class Sink(Protocol):
    """Where answers go: a Triton response sender, or a test's list. Called from several threads, one at a time."""

    def progress(self, event: Mapping[str, Any]) -> None:
        """Steps done so far, the place in the queue, seconds left."""

    def preview(self, event: Mapping[str, Any], data: bytes) -> None:
        """A small JPEG of image `event["image"]` after `event["step"]` of its steps."""

    def image(self, event: Mapping[str, Any], data: bytes) -> None:
        """Image `event["image"]`, before the others are done."""

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        """The images, in order, but not those that `image` has had; the last call."""

    def fail(self, error: ServerError) -> None:
        """What went wrong; the last call."""


class Reply:
    """Collects the images of a request and tells its sink.

    Args:
        closed: called once, after the sink has been answered.
        arrival: when the request came, in seconds of the server's clock.
        traceparent: the client's W3C trace context.

    Attributes:
        jobs: one per image, once the request has been read.
        previews: that were shown.
        given_up: why nobody waits for what is missing any more.
        details: further metadata.
        error: what it was answered with, if that was an error.
        result: what it was answered with, if that was images; until `closed` returns.
    """

    def __init__(
        self,
        request: Request,
        sink: Sink,
        closed: Callable[[Reply], None],
        arrival: float = 0.0,
        traceparent: str | None = None,
    ) -> None:
        self.request = request
        self.arrival = arrival
        self.traceparent = traceparent
        self.previews = 0
        self.jobs: tuple[Job, ...] = ()
        self.details: dict[str, Any] = {}
        self.given_up: ServerError | None = None
        self.error: ServerError | None = None
        self.result: tuple[list[bytes], Mapping[str, Any]] | None = None
        self._sink = sink
        self._closed = closed
        self._lock = threading.Lock()
        self._answered = False
        self._images: dict[int, bytes] = {}
        self._partial: dict[int, int] = {}
        self._sizes: dict[int, list[int]] = {}
        self._missing = set(range(request.num_images))
        self._timing: list[Timing] = []
        self._steps = 0

    @property
    def answered(self) -> bool:
        return self._answered

    def give_up(self, reason: ServerError, *, partial: bool = True) -> bool:
        """Say that nobody waits any more; False if the request is answered. Its jobs are the loop's to end.

        Args:
            partial: whether somebody is still there who may have asked for what there is.
        """
        if self._answered:
            return False
        self.given_up = reason
        if not (partial and self.request.partial_result and self.jobs):
            self.fail(reason)
        return True

    def expire(self) -> None:
        """The time that the client allowed is over."""
        self.give_up(
            TimedOut(
                f"timeout_ms of {self.request.timeout_ms} passed before the images were done; "
                "allow more time, ask for fewer steps, or send to another server"
            )
        )

    def wants_clean(self, job: Job) -> bool:
        """Whether the estimate of the clean latent after the job's next call may be wanted."""
        interval, step = self.request.preview_interval, job.calls_done + 1
        return bool(self.request.partial_result) or bool(interval and step % interval == 0 and step < job.calls_total)

    def step_done(self, expected: Callable[[Reply], Mapping[str, Any]]) -> None:
        """Count one step of one image; `expected` tells queue position and seconds left if an event is due."""
        self._steps += 1
        interval = self.request.progress_interval
        total = sum(job.calls_total for job in self.jobs)
        if interval and (self._steps % interval == 0 or self._steps == total):
            self.tell(expected(self))

    def tell(self, expected: Mapping[str, Any]) -> None:
        """Send a progress event."""
        total = sum(job.calls_total for job in self.jobs)
        with self._lock:
            if not self._answered:
                event = {"step": self._steps, "total": total, **expected}
                self._try(lambda: self._sink.progress(event))

    def add_preview(self, index: int, step: int, data: bytes) -> None:
        """Show how far an image is."""
        event = {"image": index, "step": step, "total": self.jobs[index].calls_total}
        with self._lock:
            if not self._answered:
                self.previews += 1
                self._try(lambda: self._sink.preview(event, data))

    def add_image(
        self, index: int, data: bytes, size: tuple[int, ...], timing: Timing, steps_done: int | None = None
    ) -> None:
        """Keep an image; answers when it was the last that was missing.

        Args:
            size: (height, width) in pixels.
            steps_done: of an image that is handed out before its last step.
        """
        with self._lock:
            if self._answered:
                return
            self._timing.append(timing)
            self._sizes[index] = list(size)
            if steps_done is not None:
                self._partial[index] = steps_done
            if self.request.stream_images:
                self._sink.image({"image": index, **({} if steps_done is None else {"steps_done": steps_done})}, data)
            self._images[index] = b"" if self.request.stream_images else data
            # Last: another image's thread may look at it without the lock.
            self._missing.discard(index)
        self._finish_if_complete()

    def leave_out(self, index: int) -> None:
        """Do without an image of a request that was given up."""
        with self._lock:
            self._missing.discard(index)
        self._finish_if_complete()

    def fail(self, error: ServerError) -> None:
        """Answer with an error, unless it is answered."""
        self._answer(lambda: self._sink.fail(error), error)

    def _finish_if_complete(self) -> None:
        if self._missing or self._answered:
            return
        if not self._images:
            self.fail(self.given_up or Cancelled("the request was given up before an image was begun"))
            return
        self.finish(
            [data for _, data in sorted(self._images.items())] if not self.request.stream_images else [],
            self._metadata(),
        )

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        """Answer with these images, unless it is answered."""
        self._answer(lambda: self._sink.finish(images, metadata), result=(images, metadata))

    def _answer(
        self,
        send: Callable[[], None],
        error: ServerError | None = None,
        result: tuple[list[bytes], Mapping[str, Any]] | None = None,
    ) -> None:
        with self._lock:
            if self._answered:
                return
            self._answered, self.error, self.result = True, error, result
            try:
                send()
            except Exception as failure:  # a client that cannot be answered must not end a thread that serves others
                logger.exception("an answer could not be sent", extra={"request_id": self.request.request_id})
                if error is None:
                    self.error, self.result = ServerError(f"the answer could not be sent: {failure}"), None
                    self._try(lambda: self._sink.fail(cast(ServerError, self.error)))
            self._try(lambda: self._closed(self))
            # Reply and jobs know each other, so they stay until Python looks for such circles; the images need not.
            self._images, self.result = {}, None

    def _try(self, call: Callable[[], None]) -> None:
        """Whatever a sink raises is this client's alone."""
        try:
            call()
        except Exception:  # as said
            logger.exception("a client could not be told", extra={"request_id": self.request.request_id})

    def _metadata(self) -> dict[str, Any]:
        seeds = [self.request.seeds(i)[0] for i in sorted(self._images)]
        worst = {key: max(timing[key] for timing in self._timing) for key in WORST}
        sums = {key: sum(timing[key] for timing in self._timing) for key in ("unet_rows", "unet_calls")}
        sizes = [size for _, size in sorted(self._sizes.items())]
        told = {"request": self.request.shown(), "seeds": seeds, "sizes": sizes}
        found = {**told, **self.details, "timing": {**worst, **sums}}
        if self.given_up is not None:
            steps = {str(i): self._partial.get(i, self.jobs[i].calls_total) for i in sorted(self._images)}
            found["partial"] = {"reason": str(self.given_up), "steps_done": steps}
        return found
