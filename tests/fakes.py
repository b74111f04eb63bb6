"""Stand-ins that tests share."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.component import Arrays
from engines.runner import Runner
from server.conditioning import Condition
from server.errors import ServerError
from server.job import Bucket, Job
from server.noise import TorchGenerator
from server.reply import Reply
from server.request import Limits, Request
from server.rows import Call
from server.schedule import TrainedSchedule
from server.table import COLUMNS, HISTORY, Table
from server.work import Work

STABLE_DIFFUSION: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
CHECKPOINT = "toy"
LIMITS = Limits(((128, 128), (192, 128), (192, 192)), model=CHECKPOINT)
# Of the jobs that `make_job` makes.
BUCKET = Bucket(CHECKPOINT, 128, 128, 2)


class ListSink:
    """Keeps what a request is answered with.

    Attributes:
        events: progress.
        previews, streamed: with the event of each.
        answers: how many there were; one is right.
        late: how often it was told something after an answer.
    """

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.previews: list[tuple[Mapping[str, Any], bytes]] = []
        self.streamed: list[tuple[Mapping[str, Any], bytes]] = []
        self.images: list[bytes] | None = None
        self.metadata: Mapping[str, Any] = {}
        self.error: ServerError | None = None
        self.answers = 0
        self.late = 0
        self._answered = threading.Event()

    def progress(self, event: Mapping[str, Any]) -> None:
        self._told()
        self.events.append(event)

    def preview(self, event: Mapping[str, Any], data: bytes) -> None:
        self._told()
        self.previews.append((event, data))

    def image(self, event: Mapping[str, Any], data: bytes) -> None:
        self._told()
        self.streamed.append((event, data))

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        self._told()
        self.images, self.metadata = images, metadata
        self._answer()

    def fail(self, error: ServerError) -> None:
        self._told()
        self.error = error
        self._answer()

    def _told(self) -> None:
        self.late += self.answers > 0

    def _answer(self) -> None:
        self.answers += 1
        self._answered.set()

    def wait(self, seconds: float = 20.0) -> bool:
        """Whether the answer came in time."""
        return self._answered.wait(seconds)


@contextmanager
def restless_threads() -> Iterator[None]:
    """Threads take turns every few instructions, so that races show."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


class BlockableRunner:
    """A runner that can be held before each call, made to fail, and asked what it was fed."""

    def __init__(self, runner: Runner) -> None:
        self.component = runner.component
        self.provider = runner.provider
        self.rows: list[int] = []
        self.failures: list[Exception] = []
        self._runner = runner
        self._gate = threading.Event()
        self._gate.set()

    def hold(self) -> None:
        """Let no further call begin."""
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        self._gate.wait()
        self.rows.append(len(next(iter(feeds.values()))))
        if self.failures:
            raise self.failures.pop()
        return self._runner.infer(feeds)


class FakeReply(Reply):
    """A reply without a client; `sink` has what it answers, `closings` how often, `closed_with` the last result."""

    def __init__(self, request: Request) -> None:
        self.sink = ListSink()
        self.closings = 0
        self.closed_with: object = None
        super().__init__(request, self.sink, self._count)

    def _count(self, reply: Reply) -> None:
        self.closings += 1
        self.closed_with = reply.result


class DeafWatcher:
    """A loop's watcher that heeds nothing; others hear what they override."""

    def turned(self) -> None:
        pass

    def called(self, call: Call, moved: Sequence[Job], padded: int, seconds: float) -> None:
        pass

    def estimated(self, job: Job) -> None:
        pass

    def failed(self, jobs: Sequence[Job], retried: bool) -> None:
        pass

    def ended(self, job: Job) -> None:
        pass

    def broke(self) -> None:
        pass


def trained(**changes: Any) -> TrainedSchedule:
    """Stable Diffusion's schedule, with other values for some keys of its configuration."""
    return TrainedSchedule.from_config({**STABLE_DIFFUSION, **changes})


def make_request(**fields: Any) -> Request:
    """A request with defaults for what is not given."""
    tensors = {"prompt": "a red circle", "seed": 0, **fields}
    return Request.parse({name: [value] for name, value in tensors.items()}, LIMITS)


def idle_table(calls: int) -> Table:
    """A table that moves nothing."""
    return Table.of(np.zeros((calls, len(COLUMNS))), 1.0, ())


def make_job(
    table: Table,
    arrival: float = 0.0,
    deadline: float | None = None,
    context: float = 0.0,
    due: float = 0.0,
    **fields: Any,
) -> Job:
    """The only job of its own request; `context` tells its embeddings from those of other jobs."""
    request = make_request(**fields)
    positive = np.full((2, 3), context, np.float32)
    negative = np.full((2, 3), -1 - context, np.float32) if request.guided else None
    condition = Condition((positive,), negative, (request.guidance_scale,))
    work = Work(
        checkpoint=request.model,
        height=request.height,
        width=request.width,
        table=table,
        noise=TorchGenerator(request.seed),
        conditions=(condition,) * table.calls,
        reserved=condition.rows,
    )
    reply = FakeReply(request)
    job = Job(request, 0, work, reply, arrival, due, deadline)
    reply.jobs = (job,)
    return job


class TableRun:
    """One latent moved along a table in float64, as the description of a table's columns says."""

    def __init__(self, table: Table, x: npt.NDArray[np.float64]) -> None:
        lines: list[list[float]] = table.lines.astype(np.float64).tolist()
        self._lines = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
        self._x_prev = np.zeros_like(x)
        self._h: list[npt.NDArray[np.float64]] = []
        self.x = x
        self.calls = 0

    @property
    def timestep(self) -> float:
        """Of the next call."""
        return self._lines[self.calls]["timestep"]

    @property
    def input(self) -> npt.NDArray[np.float64]:
        """Of the network in the next call."""
        values: npt.NDArray[np.float64] = self._lines[self.calls]["c_in"] * self.x
        return values

    def advance(self, output: npt.NDArray[Any], noise: npt.NDArray[Any] | None = None) -> None:
        """Make the next call, with this output of the network."""
        line = self._lines[self.calls]
        self._h = [line["u"] * self.x + line["v"] * output, *self._h][:HISTORY]
        following = line["a"] * self.x + line["a1"] * self._x_prev
        for age in range(HISTORY):
            if line[f"b{age}"] != 0:
                following = following + line[f"b{age}"] * self._h[age]
        if line["n"] != 0:
            assert noise is not None
            following = following + line["n"] * noise
        self._x_prev, self.x = self.x, following
        self.calls += 1
