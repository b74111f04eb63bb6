"""The in-flight denoising loop: every turn is one UNet call that serves all running jobs of a bucket."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from server.errors import Cancelled, Overloaded, ServerError
from server.job import Batch, Bucket, Job, JobStatus
from server.pipeline import Pipeline
from server.rows import Array, BucketState
from server.scheduler import Scheduler

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.2
Finished = Callable[[Job, Array, float], None]


class DenoiseLoop:
    """One thread that owns the scheduler, the latents and the UNet.

    Args:
        pipeline: what computes.
        scheduler: what decides.
        finished: is handed each finished job with its latent and the time it ended; must return at once.
        batch_sizes: rows that the engine takes; empty means any.
        clock: seconds.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        scheduler: Scheduler,
        finished: Finished,
        batch_sizes: tuple[int, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls = 0
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._finished = finished
        self._batch_sizes = batch_sizes
        self._clock = clock
        self._inbox: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._states: dict[Bucket, BucketState] = {}
        self._noise_drawer = ThreadPoolExecutor(1, "noise")
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="denoise", daemon=True)

    def step(self) -> bool:
        """One turn; False when there is nothing to do."""
        self._drop_unwanted()
        batch = self._scheduler.schedule()
        if batch is None:
            return False
        try:
            self._begin(batch)
            self._denoise(batch)
        except Exception as error:  # the loop must survive whatever a runner raises
            self._fail(batch, error)
            return True
        for job in self._scheduler.update(batch):
            self._emit(job)
        return True

    def admit(self, block_seconds: float = 0.0) -> None:
        """Take new jobs in, waiting for the first one so long."""
        try:
            jobs = self._inbox.get(timeout=block_seconds) if block_seconds else self._inbox.get_nowait()
            while True:
                for job in jobs or ():
                    self._scheduler.add(job)
                jobs = self._inbox.get_nowait()
        except queue.Empty:
            return

    def submit(self, jobs: list[Job]) -> None:
        """Hand jobs to the loop, from any thread."""
        self._inbox.put(jobs)

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
            self.admit()
            if not self.step():
                self.admit(block_seconds=IDLE_SECONDS)

    def _begin(self, batch: Batch) -> None:
        state = self._states.get(batch.bucket)
        if state is None:
            height, width, _ = batch.bucket
            shape = self._pipeline.latent_shape(height, width)
            state = BucketState(self._scheduler.max_rows, shape, self._batch_sizes)
            self._states[batch.bucket] = state
        for job in batch.joined:
            job.started = self._clock()
            state.join(job)

    def _denoise(self, batch: Batch) -> None:
        state = self._states[batch.bucket]
        call = state.call(batch)
        feeds = state.feeds(call)
        # Noise is needed after the UNet call, and numpy lets other threads run while it draws.
        drawing = self._noise_drawer.submit(state.draw, call) if call.draws else None
        output = self._pipeline.denoise(feeds)
        if drawing is not None:
            drawing.result()
        self.calls += 1
        state.advance(call, output)
        for job in batch.jobs:
            job.call_share += 1 / len(batch.jobs)
            job.reply.step_done(job.calls * job.request.num_images)

    def _emit(self, job: Job) -> None:
        state = self._states[job.bucket]
        latent = state.latent(job)
        state.leave(job)
        self._finished(job, latent, self._clock())

    def _drop_unwanted(self) -> None:
        """End jobs whose client left, whose request has failed, or whose deadline has passed."""
        now = self._clock()
        for job in self._scheduler.unwanted(now):
            self._end(job, JobStatus.CANCELLED)
            if job.reply.cancelled:
                job.reply.fail(Cancelled("the client cancelled the request"))
            else:
                job.reply.fail(
                    Overloaded(
                        f"timeout_ms of {job.request.timeout_ms} passed before the images were done; "
                        "allow more time, ask for fewer steps, or send to another server"
                    )
                )

    def _end(self, job: Job, status: JobStatus) -> None:
        if job.slot >= 0:
            self._states[job.bucket].leave(job)
        self._scheduler.remove(job, status)

    def _fail(self, batch: Batch, error: Exception) -> None:
        logger.exception("a UNet call of %d rows failed", batch.size)
        for job in batch.jobs:
            self._end(job, JobStatus.FAILED)
            job.reply.fail(ServerError(f"the UNet call failed: {error}"))
