"""Which jobs run next. Plain data in, plain data out; nothing numerical."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from server.job import Batch, Bucket, Job, JobStatus

# A job without a deadline is due after so long, so that deadlines cannot starve it.
PATIENCE_SECONDS = 60.0
# One step of priority is worth so much earlier arrival. The key never changes, so waiting is ageing.
PRIORITY_SECONDS = 10.0


def due(job: Job) -> float:
    """When a job should have run: earliest first."""
    latest = job.arrival + PATIENCE_SECONDS
    target = latest if job.deadline is None else min(job.deadline, latest)
    return target - job.request.priority * PRIORITY_SECONDS


def _is_unwanted(job: Job, now: float) -> bool:
    late = job.deadline is not None and now > job.deadline
    return job.status in (JobStatus.CANCELLED, JobStatus.FAILED) or late or job.reply.cancelled or job.reply.answered


@dataclass(slots=True)
class _Queue:
    waiting: list[tuple[float, int, Job]] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    rows: int = 0
    last_turn: int = 0


class Scheduler:
    """Admits waiting jobs in order of `due` while their rows fit; jobs that run stay until they end.

    Args:
        max_rows: rows of one UNet call.

    `add` is O(log n) in waiting jobs, `schedule` O(log n) per job that joins. Not thread-safe: the loop owns it.
    """

    def __init__(self, max_rows: int) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows is {max_rows}; a guided image alone needs 2")
        self.max_rows = max_rows
        self._queues: dict[Bucket, _Queue] = {}
        self._arrivals = itertools.count()
        self._turns = itertools.count(1)

    def add(self, job: Job) -> None:
        """Let a job wait."""
        queue = self._queues.setdefault(job.bucket, _Queue())
        heapq.heappush(queue.waiting, (due(job), next(self._arrivals), job))

    @property
    def has_unfinished(self) -> bool:
        return any(queue.waiting or queue.running for queue in self._queues.values())

    @property
    def waiting(self) -> int:
        """Jobs that wait, unwanted ones that have not come to the front included."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def unwanted(self, now: float) -> list[Job]:
        """Jobs that nobody waits for any more: all that run, and those that would run next."""
        found = []
        for queue in self._queues.values():
            found += [job for job in queue.running if _is_unwanted(job, now)]
            while queue.waiting and _is_unwanted(queue.waiting[0][2], now):
                job = heapq.heappop(queue.waiting)[2]
                if job.status is JobStatus.WAITING:
                    found.append(job)
        return found

    def schedule(self) -> Batch | None:
        """The next call: buckets take turns; None when nothing waits or runs."""
        candidates = [item for item in self._queues.items() if item[1].waiting or item[1].running]
        for bucket, queue in sorted(candidates, key=lambda item: item[1].last_turn):
            joined = self._admit(queue)
            if queue.running:
                queue.last_turn = next(self._turns)
                return Batch(bucket, tuple(queue.running), tuple(joined))
        return None

    def _admit(self, queue: _Queue) -> list[Job]:
        joined = []
        while queue.waiting:
            job = queue.waiting[0][2]
            if queue.rows + job.reserved > self.max_rows:
                break
            heapq.heappop(queue.waiting)
            job.status = JobStatus.RUNNING
            queue.running.append(job)
            queue.rows += job.reserved
            joined.append(job)
        return joined

    def update(self, batch: Batch) -> list[Job]:
        """Count the call that was made; returns the jobs that it finished."""
        finished = []
        for job in batch.jobs:
            job.step_index += 1
            if job.step_index == job.calls:
                self.remove(job, JobStatus.FINISHED)
                finished.append(job)
        return finished

    def remove(self, job: Job, status: JobStatus) -> None:
        """End a job that runs, or one that `unwanted` gave."""
        if job.status is JobStatus.RUNNING:
            queue = self._queues[job.bucket]
            queue.running.remove(job)
            queue.rows -= job.reserved
        job.status = status
