"""Requests drawn turn by turn with real networks, so that latents and calls can be seen and not only pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.component import Arrays
from engines.runner import Runner
from server.checkpoints import Checkpoints
from server.fields import Raster
from server.image import Pixels
from server.job import Job, JobStatus
from server.loop import DenoiseLoop
from server.picture_files import PictureLimits
from server.preparation import Preparation
from server.reply import Reply
from server.request import Request
from server.request_pictures import measure
from server.rows import Array, Call
from server.scheduler import Scheduler
from server.table import TIMESTEP
from tests.fakes import DeafWatcher, ListSink

MAX_ROWS = 16
LIMITS = PictureLimits()


@dataclass
class Drawn:
    """What came of a request.

    Attributes:
        latents: (images, c, h, w), finished, of its last pass.
        pictures: finished.
        timesteps: of the calls of its first image, one list for each pass.
        passes: (c, h, w) latents of the first image at the end of each pass.
    """

    latents: Array
    pictures: list[Pixels]
    timesteps: list[list[float]]
    passes: list[Array]


@dataclass
class Recorded:
    """What is known of a job while it is drawn."""

    timesteps: list[list[float]] = field(default_factory=lambda: [[]])
    passes: list[Array] = field(default_factory=list)


@dataclass(frozen=True)
class Shared:
    """One UNet call: the checkpoints and the tasks of its passes, and its rows."""

    checkpoints: frozenset[str]
    tasks: tuple[str, ...]
    rows: int


class Drawing(DeafWatcher):
    """A loop over checkpoints; closes with the block.

    Attributes:
        calls: all UNet calls.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.calls: list[Shared] = []
        self._preparation = Preparation(checkpoints, LIMITS)
        self._recorded: dict[Job, Recorded] = {}
        self._loop = DenoiseLoop(checkpoints, Scheduler(MAX_ROWS), self._finished, self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.close()

    def request(self, model: str = "", **fields: Any) -> Request:
        """A checked request; pictures may be given as pixels, uint8 for a file and float32 for an array."""
        name = model or self.checkpoints.names[0]
        values = {field: sent(value) if isinstance(value, np.ndarray) else value for field, value in fields.items()}
        tensors = {"prompt": "a red circle", "model": name, **values}
        limits = self.checkpoints.limits(name)
        return Request.parse(
            {name: [value] for name, value in tensors.items()}, limits, partial(measure, limits=LIMITS)
        )

    def draw(self, *requests: Request, arrivals: Sequence[int] = ()) -> list[Drawn]:
        """Draw requests together, each submitted before the turn that its arrival says."""
        groups = [self._jobs(request) for request in requests]
        waiting = sorted(zip(arrivals or [0] * len(groups), groups, strict=True), key=lambda one: one[0])
        turn = 0
        while any(job.status is not JobStatus.FINISHED for group in groups for job in group):
            while waiting and waiting[0][0] <= turn:
                self._loop.submit(waiting.pop(0)[1])
            self._loop.admit()
            moved = self._loop.step()
            assert moved or waiting, [job.reply.answered for group in groups for job in group]
            turn += 1
        return [self._drawn(group) for group in groups]

    def one(self, model: str = "", **fields: Any) -> Drawn:
        """A request drawn alone."""
        return self.draw(self.request(model, **fields))[0]

    def _jobs(self, request: Request) -> list[Job]:
        works, _ = self._preparation.works(request)
        reply = Reply(request, ListSink(), lambda reply: None)
        jobs = [Job(request, index, work, reply, arrival=0.0) for index, work in enumerate(works)]
        reply.jobs = tuple(jobs)
        self._recorded |= {job: Recorded() for job in jobs}
        return jobs

    def called(self, call: Call, moved: Sequence[Job], padded: int, seconds: float) -> None:
        for job, line in zip(call.jobs, call.moves, strict=True):
            self._recorded[job].timesteps[-1].append(float(line[TIMESTEP]))
        tasks = tuple(_task(job) for job in call.jobs)
        self.calls.append(Shared(frozenset(job.work.checkpoint for job in call.jobs), tasks, call.rows))

    def _finished(self, job: Job, latent: Array, when: float) -> None:
        recorded = self._recorded[job]
        recorded.passes.append(latent)
        if job.work.then is not None:
            recorded.timesteps.append([])
            job.following = job.work.then(latent)
            self._loop.submit([job])

    def _drawn(self, jobs: Sequence[Job]) -> Drawn:
        latents = np.stack([self._recorded[job].passes[-1] for job in jobs])
        pictures = list(self.checkpoints[jobs[0].work.checkpoint].decode(latents))
        for i, job in enumerate(jobs):
            if job.work.finish is not None:
                pictures[i] = job.work.finish(pictures[i])
        first = self._recorded[jobs[0]]
        return Drawn(latents, pictures, first.timesteps, first.passes)


def _task(job: Job) -> str:
    return "hires" if job.passed else job.request.task


class Recording:
    """A runner that keeps copies of what it was fed."""

    def __init__(self, runner: Runner) -> None:
        self.component = runner.component
        self.provider = runner.provider
        self.feeds: list[dict[str, npt.NDArray[Any]]] = []
        self._runner = runner

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        self.feeds.append({name: values.copy() for name, values in feeds.items()})
        return self._runner.infer(feeds)


def sent(pixels: npt.NDArray[Any]) -> bytes | Raster:
    """As the file or the array of a request."""
    return as_png(pixels) if pixels.dtype.kind == "u" else Raster(pixels.shape, pixels.astype(np.float32).tobytes())


def as_png(pixels: npt.NDArray[Any]) -> bytes:
    """(h, w, 3) or (h, w) uint8, or (h, w) uint16, as a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def scene(height: int, width: int) -> Pixels:
    """(h, w, 3) with slopes, edges and fine structure."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / width, 255 * y / height
    blue = 128 + 100 * np.sin(x / 5) * np.cos(y / 7)
    pixels = np.stack([red, green, blue], axis=-1)
    pixels[(x - 0.6 * width) ** 2 + (y - 0.4 * height) ** 2 < (0.25 * min(height, width)) ** 2] = (240, 30, 60)
    rounded: Pixels = pixels.astype(np.uint8)
    return rounded


def window(height: int, width: int) -> Pixels:
    """A mask (h, w) that has a part of the picture, with no symmetry, repainted."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height * 3 // 4, width // 8 : width * 5 // 8] = 255
    return mask


def psnr(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """In decibels."""
    assert one.shape == other.shape
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-9)))
