"""The answer to one request: gathers its images, and answers exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from server.errors import ServerError
from server.request import Request


class Sink(Protocol):
    """Where answers go: a Triton response sender, or a test's list. Called from several threads, one at a time."""

    def progress(self, event: Mapping[str, Any]) -> None:
        """Steps done so far."""

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        """The images, in order; the last call."""

    def fail(self, error: ServerError) -> None:
        """What went wrong; the last call."""


class Reply:
    """Collects the images of a request and tells its sink.

    Args:
        closed: called once, after the sink has been answered.
    """

    def __init__(self, request: Request, sink: Sink, closed: Callable[[Reply], None]) -> None:
        self.request = request
        self.cancelled = False
        self._sink = sink
        self._closed = closed
        self._lock = threading.Lock()
        self._answered = False
        self._images: dict[int, bytes] = {}
        self._timing: list[dict[str, float]] = []
        self._steps = 0
        self.details: dict[str, Any] = {}

    @property
    def answered(self) -> bool:
        return self._answered

    def step_done(self, total: int) -> None:
        """Count one step of one image; `total` steps make the request."""
        self._steps += 1
        interval = self.request.progress_interval
        if interval and (self._steps % interval == 0 or self._steps == total) and not self._answered:
            self._sink.progress({"step": self._steps, "total": total})

    def add_image(self, index: int, data: bytes, timing: dict[str, float]) -> None:
        """Keep an image; answers when it was the last that was missing."""
        with self._lock:
            self._images[index] = data
            self._timing.append(timing)
            complete = len(self._images) == self.request.num_images and not self._answered
            self._answered = self._answered or complete
        if complete:
            images = [self._images[i] for i in range(self.request.num_images)]
            try:
                self._sink.finish(images, self._metadata())
            finally:
                self._closed(self)

    def fail(self, error: ServerError) -> None:
        """Answer with an error, unless it is answered."""
        with self._lock:
            if self._answered:
                return
            self._answered = True
        try:
            self._sink.fail(error)
        finally:
            self._closed(self)

    def _metadata(self) -> dict[str, Any]:
        request = {name: value for name, value in asdict(self.request).items() if value is not None and value != ()}
        seeds = [self.request.seeds(i)[0] for i in range(self.request.num_images)]
        worst = {
            key: max(t[key] for t in self._timing) for key in ("queue_seconds", "denoise_seconds", "decode_seconds")
        }
        sums = {key: sum(t[key] for t in self._timing) for key in ("unet_rows", "unet_calls")}
        return {"request": request, "seeds": seeds, **self.details, "timing": {**worst, **sums}}
