"""The in-flight denoising loop: every turn is one UNet call that serves running jobs of a bucket."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from engines.errors import FeedError
from server.errors import InvalidRequest, ServerError
from server.job import FINAL, Batch, Bucket, Job, JobStatus
from server.pipeline import Pipeline
from server.reply import Reply
from server.rows import Array, BucketState, Call
from server.scheduler import Scheduler

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.2
# A job that was part of so many failed calls goes on alone, so that it can harm nobody but itself.
FAILURES_IN_COMPANY = 3
# When so many calls in a row were refused, it is not the jobs: the engine is broken. Outputs that are not finite do
# not count; a client's prompt can provoke them.
FAILURES_IN_A_ROW = 20
Finished = Callable[[Job, Array, float], None]


class Watcher(Protocol):
    """Who hears what the loop does; called on the loop's thread, must return at once."""

    def turned(self) -> None:
        """The loop is alive; at least every `IDLE_SECONDS`."""

    def called(self, call: Call, moved: Sequence[Job], padded: int, seconds: float) -> None:
        """A UNet call was made; the steps of the jobs that it moved are counted, those that ended are not told yet."""

    def estimated(self, job: Job) -> None:
        """`job.clean` is new."""

    def failed(self, jobs: Sequence[Job], retried: bool) -> None:
        """A UNet call failed for these jobs."""

    def ended(self, job: Job) -> None:
        """A job has finished, or was ended before."""

    def broke(self) -> None:
        """`FAILURES_IN_A_ROW` calls have failed without one that has not; told again by every further one."""


@dataclass(frozen=True, slots=True)
class Made:
    """A UNet call that was made.

    Attributes:
        broken: jobs whose output is not finite.
        shown: jobs with a new `clean`.
        padded: rows with padding.
        seconds: that the UNet took.
    """

    call: Call
    broken: list[Job]
    shown: list[Job]
    padded: int
    seconds: float


class DenoiseLoop:
    """One thread that owns the scheduler, the latents and the UNet.

    Args:
        pipelines: what computes, by checkpoint.
        scheduler: what decides.
        finished: is handed each finished job with its latent and the time it ended; must return at once.
        watcher: who hears of it.
        batch_sizes: rows that the engine takes; empty means any.
        clock: seconds.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        scheduler: Scheduler,
        finished: Finished,
        watcher: Watcher,
        batch_sizes: tuple[int, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipelines = pipelines
        self._scheduler = scheduler
        self._finished = finished
        self._watcher = watcher
        self._batch_sizes = batch_sizes
        self._clock = clock
        self._inbox: queue.SimpleQueue[Sequence[Job] | Reply | None] = queue.SimpleQueue()
        self._states: dict[Bucket, BucketState] = {}
        self._noise_drawer = ThreadPoolExecutor(1, "noise")
        self._closing = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="denoise", daemon=True)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Hand jobs to the loop, from any thread."""
        self._inbox.put(jobs)

    def drop(self, reply: Reply) -> None:
        """End the jobs of a request that was answered or given up, from any thread; seen before the next call."""
        self._inbox.put(reply)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the call that is being made; open jobs stay unanswered and are the owner's to fail."""
        self._closing = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._noise_drawer.shutdown()

    def _run(self) -> None:
        while not self._closing:
            try:
                self.admit()
                if not self.step():
                    self.admit(block_seconds=IDLE_SECONDS)
            except Exception:  # a defect of ours must not end the service of everybody, nor spin for ever
                logger.exception("a turn of the loop failed")
                self._count_failure()
                time.sleep(IDLE_SECONDS)

    def admit(self, block_seconds: float = 0.0) -> None:
        """Take in what was submitted, waiting for the first so long."""
        try:
            item = self._inbox.get(timeout=block_seconds) if block_seconds else self._inbox.get_nowait()
            while True:
                if isinstance(item, Reply):
                    self._give_up(item)
                else:
                    for job in item or ():
                        self._add(job)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return

    def step(self) -> bool:
        """One turn; False when there is nothing to do."""
        self._watcher.turned()
        now = self._clock()
        for job in self._scheduler.expired(now):
            job.reply.expire()
            self._give_up(job.reply)
        batch = self._scheduler.schedule(now)
        if batch is None:
            return False
        try:
            self._begin(batch)
            made = self._denoise(batch)
            broken = made.broken
        except Exception as error:  # the loop must survive whatever a runner raises
            logger.exception("a UNet call of %d rows failed", batch.size)
            if isinstance(error, FeedError):  # what was asked does not fit the UNet, which was not called at all
                self._suspect(batch, batch.jobs, InvalidRequest(f"the UNet does not take this request: {error}"))
            else:
                self._suspect(batch, batch.jobs, ServerError(f"the UNet call failed: {error}"))
                self._count_failure()
            return True
        self._failures = 0
        if broken:
            overflow = ServerError("the UNet's output is not finite: it overflowed; try other settings")
            self._suspect(batch, broken, overflow)
        healthy = [job for job in batch.jobs if job not in broken]
        for job in healthy:
            job.suspect = False
        finished = self._scheduler.update(healthy)
        self._tell(made, healthy)
        for job in finished:
            self._emit(job)
        self._scheduler.isolate(job for job in healthy if job.failures >= FAILURES_IN_COMPANY and job.slot >= 0)
        return True

    def _add(self, job: Job) -> None:
        """A request may have been given up while it was on its way here."""
        if job.status is JobStatus.NEW:
            if job.following is not None:
                job.go_on()
            self._scheduler.add(job)
        if job.reply.answered or job.reply.given_up is not None:
            self._give_up(job.reply)

    def _begin(self, batch: Batch) -> None:
        state = self._states.get(batch.bucket)
        if state is None:
            pipeline = self._pipelines[batch.bucket.checkpoint]
            shape = pipeline.latent_shape(batch.bucket.height, batch.bucket.width)
            extra, labelled = pipeline.extra_channels, pipeline.labelled
            state = BucketState(self._scheduler.capacity, shape, self._batch_sizes, extra, labelled)
            self._states[batch.bucket] = state
        for job in batch.joined:
            job.started = job.started or self._clock()
            state.join(job)

    def _denoise(self, batch: Batch) -> Made:
        """Make the call. Jobs whose output is not finite stay where they were."""
        state = self._states[batch.bucket]
        call = state.call(batch)
        feeds = state.feeds(call)
        # Noise is needed after the UNet call, and numpy lets other threads run while it draws.
        drawing = self._noise_drawer.submit(state.draw, call) if call.draws else None
        started = self._clock()
        try:
            output = self._pipelines[batch.bucket.checkpoint].denoise(feeds)
            seconds = self._clock() - started
        finally:
            if drawing is not None:
                drawing.result()
        broken = state.broken(call, output)
        shown = [i for i, job in enumerate(call.jobs) if job.reply.wants_clean(job) and job not in broken]
        for i in shown:
            call.jobs[i].clean = state.estimate(call, output, i)
        state.advance(call, output, broken)
        return Made(call, broken, [call.jobs[i] for i in shown], len(feeds["timestep"]), seconds)

    def _tell(self, made: Made, moved: Sequence[Job]) -> None:
        """Let the watcher hear of a call; whatever it raises must not undo what was done."""
        for job in moved:
            job.call_share += 1 / len(made.call.jobs)
        try:
            self._watcher.called(made.call, moved, made.padded, made.seconds)
            for job in made.shown:
                self._watcher.estimated(job)
        except Exception:  # a watcher's own failure
            logger.exception("a UNet call could not be reported")

    def _emit(self, job: Job) -> None:
        state = self._states[job.bucket]
        latent = state.latent(job)
        state.leave(job)
        if job.work.then is not None:
            # On its way to the next pass it may still be cancelled.
            job.status = JobStatus.NEW
            self._finished(job, latent, self._clock())
            return
        job.ended = self._clock()
        self._watcher.ended(job)
        self._finished(job, latent, job.ended)

    def _count_failure(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            self._watcher.broke()

    def _suspect(self, batch: Batch, jobs: Sequence[Job], error: ServerError) -> None:
        """Try each job of a failed call once more without others; who then fails alone is at fault."""
        at_fault = [job for job in jobs if job.suspect and len(batch.jobs) == 1]
        self._watcher.failed(jobs, retried=not at_fault)
        for job in jobs:
            job.failures += 1
            job.suspect = True
        for job in at_fault:
            self._end(job, JobStatus.FAILED)
            job.reply.fail(error)
            self._give_up(job.reply)
        if not at_fault:
            self._scheduler.isolate(job for job in jobs if job.status not in FINAL)

    def _give_up(self, reply: Reply) -> None:
        """End what runs and waits of a request; hands out what there is if partial results were asked for."""
        for job in reply.jobs:
            if job.status in FINAL:
                continue
            self._end(job, JobStatus.CANCELLED)
            if job.clean is not None and not reply.answered:
                self._finished(job, job.clean, job.ended)
            else:
                reply.leave_out(job.index)

    def _end(self, job: Job, status: JobStatus) -> None:
        if job.slot >= 0:
            self._states[job.bucket].leave(job)
        if job.status is not JobStatus.NEW:
            self._scheduler.end(job, status)
        job.status, job.ended = status, self._clock()
        self._watcher.ended(job)
