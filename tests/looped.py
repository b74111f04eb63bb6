"""A denoising loop that is driven turn by turn: real tables and latents, a clock, a network that fails when told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from engines.errors import ProviderError
from server.job import Job
from server.levels import Choice
from server.loop import DenoiseLoop
from server.pipeline import Pipeline
from server.rows import Array, Call
from server.samplers import sampler_table
from server.scheduler import Scheduler
from server.step_curve import StepCurve
from tests.fakes import CHECKPOINT, DeafWatcher, FakeReply, make_job, trained

SHAPE = (4, 3, 2)
CALL_SECONDS = 0.1
# More calls than any test needs.
ENDLESS = 5000
# What happens to a call of jobs with these numbers: it raises, or it gives NaN for some of them.
Fault = Callable[[frozenset[int]], bool | frozenset[int]]


class FaultyUnet:
    """Treats every row alone, in exact arithmetic, so that equal rows give equal bits; takes time.

    Attributes:
        fault: asked before each call.
        error: what it raises then.
        now: seconds.
        numbers: the jobs of each call.
        rows: of each call, padding included.
    """

    extra_channels = 0
    labelled = False

    def __init__(self) -> None:
        self.fault: Fault = lambda numbers: False
        self.error: Exception = ProviderError("out of memory")
        self.now = 100.0
        self.numbers: list[frozenset[int]] = []
        self.rows: list[int] = []

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return SHAPE

    def denoise(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Array:
        self.now += CALL_SECONDS
        contexts = feeds["encoder_hidden_states"][:, 1, 2]
        # Negative rows and padding have the numbers of their jobs too.
        owners = np.where(contexts < 0, -1 - contexts, contexts).round().astype(int)
        numbers = frozenset(owners.tolist())
        self.numbers.append(numbers)
        self.rows.append(len(contexts))
        fault = self.fault(numbers)
        if fault is True:
            raise self.error
        level = (feeds["timestep"] / np.float32(1000)).reshape(-1, 1, 1, 1)
        said = (contexts / (1 + np.abs(contexts))).reshape(-1, 1, 1, 1)
        drive = feeds["sample"] * np.float32(1.5) + level - said
        output: Array = drive / (1 + np.abs(drive))
        if isinstance(fault, frozenset):
            output[np.isin(owners, list(fault)), 1] = np.nan
        return output


class Looped(DeafWatcher):
    """A loop with its watcher; closes with the block.

    Attributes:
        latents: of the jobs that were handed on.
        ends: jobs in the order in which they ended.
        calls: the jobs of each call that gave something.
        failures: the jobs of each failure, and whether they are retried.
        broken: how often the engine was said to be broken.
    """

    def __init__(self, max_rows: int = 16, batch_sizes: tuple[int, ...] = (), cap: int = 0) -> None:
        self.unet = FaultyUnet()
        self.scheduler = Scheduler(max_rows, lambda bucket: StepCurve(cap=cap))
        self.latents: dict[Job, Array] = {}
        self.ends: list[Job] = []
        self.calls: list[tuple[Job, ...]] = []
        self.moved: list[tuple[Job, ...]] = []
        self.steps: dict[Job, int] = {}
        # Told at the end, since the loop survives what a watcher raises.
        self.wrong: list[str] = []
        self.failures: list[tuple[tuple[Job, ...], bool]] = []
        self.broken = 0
        self.loop = DenoiseLoop(
            {CHECKPOINT: cast(Pipeline, self.unet)},
            self.scheduler,
            self.finished,
            self,
            batch_sizes,
            lambda: self.unet.now,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.close()
        assert kind is not None or not self.wrong

    def finished(self, job: Job, latent: Array, seconds: float) -> None:
        assert job not in self.latents, "handed on twice"
        assert job.ended == seconds
        self.latents[job] = latent

    def called(self, call: Call, moved: Sequence[Job], padded: int, seconds: float) -> None:
        if padded != self.unet.rows[-1]:
            self.wrong.append(f"{padded} rows told, {self.unet.rows[-1]} called")
        self.calls.append(call.jobs)
        self.moved.append(tuple(moved))
        for job in moved:
            self.steps[job] = self.steps.get(job, 0) + 1
            if job.step_index != self.steps[job]:
                self.wrong.append(f"step {self.steps[job]} was told when {job.step_index} were counted")

    def failed(self, jobs: Sequence[Job], retried: bool) -> None:
        self.failures.append((tuple(jobs), retried))

    def ended(self, job: Job) -> None:
        assert job not in self.ends, "ended twice"
        self.ends.append(job)

    def broke(self) -> None:
        self.broken += 1

    def submit(self, *jobs: Job) -> None:
        self.loop.submit(jobs)

    def turn(self) -> bool:
        self.loop.admit()
        return self.loop.step()

    def drain(self) -> None:
        for _ in range(ENDLESS):
            if not self.turn():
                return
        raise AssertionError("jobs are called for ever")


def drawing(
    sampler: str,
    steps: int,
    number: int,
    guidance_scale: float = 7.5,
    schedule: str = "normal",
    due: float = 0.0,
    **fields: Any,
) -> Job:
    """A job with a real table; its number is that of the network's calls and its seed."""
    table = sampler_table(sampler, Choice(kind=schedule, steps=steps), trained(steps_offset=1))
    fields = {"context": float(number), "seed": number, "guidance_scale": guidance_scale, **fields}
    return make_job(table, due=due, **fields)


def reply_of(job: Job) -> FakeReply:
    return cast(FakeReply, job.reply)


def alone(*jobs: Job) -> list[Array]:
    """The latents that these jobs have, each in a loop of its own."""
    found = []
    for job in jobs:
        with Looped() as looped:
            looped.submit(job)
            looped.drain()
            found.append(looped.latents[job])
    return found


def assert_same_bits(one: Array, other: Array) -> None:
    assert one.dtype == other.dtype == np.float32
    assert np.isfinite(one).all()
    assert np.array_equal(one.view(np.uint32), other.view(np.uint32))
