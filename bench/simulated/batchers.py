"""The two ways of serving that the server's own is measured against, real code on the same fake accelerator."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from bench.simulated.accelerator import GUIDED_ROWS, FakeAccelerator
from bench.simulated.in_flight import Finished, InFlight
from bench.simulated.virtual_time import Batcher, VirtualClock
from server.job import Batch, Job
from server.rows import BucketState

OpenBatcher: TypeAlias = Callable[[FakeAccelerator, int, VirtualClock, Finished], Batcher]


class Static:
    """A greedy static batcher: jobs of equal steps start together, run together and end together.

    Whenever the device is free it takes the job that waits longest, and with it as many as fit of those that wait and
    have as many UNet calls to make; it never waits for more to come. Samplers may differ within a batch.

    Args:
        device: what computes.
        max_rows: rows of one UNet call.
        clock: seconds.
        finished: is handed each finished job with its latent and the time it ended.
    """

    def __init__(self, device: FakeAccelerator, max_rows: int, clock: VirtualClock, finished: Finished) -> None:
        self._device = device
        self._max_rows = max_rows
        self._clock = clock
        self._finished = finished
        self._waiting: dict[int, deque[Job]] = {}

    def submit(self, job: Job) -> None:
        self._waiting.setdefault(job.calls, deque()).append(job)

    def turn(self) -> bool:
        waiting = [jobs for jobs in self._waiting.values() if jobs]
        if not waiting:
            return False
        self._run(self._taken(min(waiting, key=lambda jobs: jobs[0].arrival)))
        return True

    def close(self) -> None:
        """Holds nothing."""

    def _taken(self, waiting: deque[Job]) -> list[Job]:
        taken = [waiting.popleft()]
        rows = taken[0].reserved
        while waiting and rows + waiting[0].reserved <= self._max_rows:
            rows += waiting[0].reserved
            taken.append(waiting.popleft())
        return taken

    def _run(self, jobs: Sequence[Job]) -> None:
        """All calls of these jobs."""
        batch = Batch(jobs[0].bucket, tuple(jobs))
        state = BucketState(len(batch.jobs), self._device.latent_shape(batch.bucket.height, batch.bucket.width))
        for job in batch.jobs:
            state.join(job)
        for _ in range(batch.jobs[0].calls):
            call = state.call(batch)
            output = self._device.denoise(state.feeds(call))
            if call.draws:
                state.draw(call)
            state.advance(call, output)
            for job in batch.jobs:
                job.step_index += 1
        for job in batch.jobs:
            self._finished(job, state.latent(job), self._clock())


class Serial(Static):
    """One image at a time in order of arrival, as NVIDIA's Stable Diffusion example for Triton serves.

    Args:
        As for `Static`, but calls never have more rows than one image.
    """

    def __init__(self, device: FakeAccelerator, max_rows: int, clock: VirtualClock, finished: Finished) -> None:
        super().__init__(device, GUIDED_ROWS, clock, finished)


BATCHERS: Mapping[str, OpenBatcher] = {"in_flight": InFlight, "static": Static, "serial": Serial}
