"""Which jobs run next. Plain data in, plain data out; nothing numerical.

The job that is due first runs first, and every call may be made of other jobs than the last: a job that has begun keeps
its latent and waits while more urgent ones take the rows. Keys are fixed when a job arrives, so waiting is ageing.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from server.job import FINAL, Batch, Bucket, Job, JobStatus
from server.step_curve import StepCurve

Keyed: TypeAlias = tuple[float, int, Job]

# Deadlines that are kept before those of jobs that have ended are forgotten.
DEADLINES_KEPT = 64
# Jobs that have begun, for every row of a call; the latents of all of them are kept.
BEGUN_PER_ROW = 4
# A job with at most this share of the calls of its longest companion is a guest: large calls would stretch it most.
GUEST_SHARE = 0.25
# A guest's calls are kept small enough for it to end within so many times its time alone, while that is possible.
GUEST_STRETCH = 1.45


@dataclass(slots=True)
class _Queue:
    """The jobs of a bucket, the most urgent first.

    Attributes:
        waiting: a heap; `gone` of them have ended and are dropped when they come to the front.
        begun: sorted.
        alone: of those that have begun, the ones whose next call is made without others.
        last_alone: whether the last call was such a one; they take turns with the others.
    """

    waiting: list[Keyed] = field(default_factory=list)
    gone: int = 0
    begun: list[Keyed] = field(default_factory=list)
    alone: deque[Job] = field(default_factory=deque)
    last_alone: bool = False

    @property
    def first(self) -> float:
        """When the most urgent job is due."""
        return min(jobs[0][0] for jobs in (self.waiting, self.begun) if jobs)

    def drop_gone(self) -> None:
        """Forget what has ended: at the front always, everywhere when it is more than half."""
        while self.waiting and self.waiting[0][2].status in FINAL:
            heapq.heappop(self.waiting)
            self.gone -= 1
        if 2 * self.gone > len(self.waiting):
            self.waiting = [keyed for keyed in self.waiting if keyed[2].status not in FINAL]
            heapq.heapify(self.waiting)
            self.gone = 0

    def most_urgent(self, cap: int, capacity: int) -> list[Job]:
        """As many as fit the cap, in order; those that waited begin, while fewer than `capacity` have."""
        chosen: list[Job] = []
        rows, place = 0, 0
        while rows < cap:
            self.drop_gone()
            new = self.waiting[0] if self.waiting and len(self.begun) < capacity else None
            old = self.begun[place] if place < len(self.begun) else None
            if new is None and old is None:
                break
            if new is not None and (old is None or new < old):
                if chosen and rows + new[2].rows > cap:
                    break
                heapq.heappop(self.waiting)
                new[2].status = JobStatus.RUNNING
                self.begun.insert(place, new)
            job = self.begun[place][2]
            place += 1
            if job in self.alone:
                continue
            # The first one runs even if it needs more rows than the cap.
            if not chosen or rows + job.rows <= cap:
                chosen.append(job)
                rows += job.rows
        return chosen


class Scheduler:
    """Earliest due first, over buckets and within them.

    Args:
        max_rows: rows of one UNet call, at most.
        curve: step-time curve of a bucket; how far calls are filled follows from it.

    `add` and `end` are O(log n) in waiting jobs, `schedule` O(log n) for each job that begins and O(rows) otherwise.
    Not thread-safe: the loop owns it.
    """

    def __init__(self, max_rows: int, curve: Callable[[Bucket], StepCurve] = lambda bucket: StepCurve()) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows is {max_rows}; a guided image alone needs 2")
        self.max_rows = max_rows
        self.capacity = BEGUN_PER_ROW * max_rows
        self._curve = curve
        self._queues: dict[Bucket, _Queue] = {}
        self._deadlines: list[Keyed] = []
        self._numbers = itertools.count()

    def add(self, job: Job) -> None:
        """Let a job wait."""
        number = next(self._numbers)
        job.status = JobStatus.WAITING
        heapq.heappush(self._queues.setdefault(job.bucket, _Queue()).waiting, (job.due, number, job))
        if job.deadline is not None:
            heapq.heappush(self._deadlines, (job.deadline, number, job))

    @property
    def has_unfinished(self) -> bool:
        return any(len(queue.waiting) > queue.gone or queue.begun for queue in self._queues.values())

    def counts(self) -> dict[Bucket, tuple[int, int]]:
        """Jobs that wait for their first call, and jobs that have begun, by bucket; any thread may ask."""
        queues = list(self._queues.items())
        return {bucket: (len(queue.waiting) - queue.gone, len(queue.begun)) for bucket, queue in queues}

    def row_cap(self, bucket: Bucket) -> int:
        """Rows that calls of a bucket are filled up to."""
        return self._curve(bucket).row_cap(self.max_rows)

    def expired(self, now: float) -> list[Job]:
        """Jobs whose deadline has passed; each is told once."""
        found = []
        # A job that ended long before its deadline would be kept until then, with its images.
        if len(self._deadlines) > DEADLINES_KEPT + 2 * sum(map(sum, self.counts().values())):
            self._deadlines = [keyed for keyed in self._deadlines if keyed[2].status not in FINAL]
            heapq.heapify(self._deadlines)
        while self._deadlines and (self._deadlines[0][0] < now or self._deadlines[0][2].status in FINAL):
            job = heapq.heappop(self._deadlines)[2]
            if job.status not in FINAL:
                found.append(job)
        return found

    def schedule(self, now: float = 0.0) -> Batch | None:
        """The next call, at this time of the jobs' clock; None when nothing waits or runs."""
        for queue in self._queues.values():
            queue.drop_gone()
        candidates = [item for item in self._queues.items() if item[1].waiting or item[1].begun]
        if not candidates:
            return None
        bucket, queue = min(candidates, key=lambda item: item[1].first)
        chosen = [] if queue.alone and not queue.last_alone else queue.most_urgent(self.row_cap(bucket), self.capacity)
        queue.last_alone = not chosen
        chosen = _kept_short(chosen, self._curve(bucket), now) if chosen else [queue.alone.popleft()]
        return Batch(bucket, tuple(chosen), tuple(job for job in chosen if job.slot < 0))

    def update(self, jobs: Iterable[Job]) -> list[Job]:
        """Count the call that was made for these jobs; returns those that it finished."""
        finished = []
        for job in jobs:
            job.step_index += 1
            if job.step_index == job.calls:
                self.end(job, JobStatus.FINISHED)
                finished.append(job)
        return finished

    def isolate(self, jobs: Iterable[Job]) -> None:
        """Make the next call of each of these jobs, which have begun, without others."""
        for job in jobs:
            self._queues[job.bucket].alone.append(job)

    def end(self, job: Job, status: JobStatus) -> None:
        """End a job that waits or runs."""
        queue = self._queues[job.bucket]
        if job.status is JobStatus.RUNNING:
            queue.begun = [keyed for keyed in queue.begun if keyed[2] is not job]
            if job in queue.alone:
                queue.alone.remove(job)
        elif job.status is JobStatus.WAITING:
            queue.gone += 1
        job.status = status


def _kept_short(chosen: list[Job], curve: StepCurve, now: float) -> list[Job]:
    """These jobs, or fewer of them where guests among them could not otherwise end in time.

    A long job hardly notices a few calls that were made without it; a short one is held up by each large call.
    """
    longest = max(job.calls for job in chosen)
    limits = {}
    for job in chosen:
        if job.calls <= GUEST_SHARE * longest:
            own = curve.seconds(job.rows)
            left = (job.arrival + GUEST_STRETCH * job.calls * own - now) / (job.calls - job.step_index)
            if own <= left:
                limits[job] = left
    if not limits:
        return chosen
    limit = min(limits.values())
    kept: list[Job] = []
    rows = 0
    for job in sorted(chosen, key=lambda job: limits.get(job, float("inf"))):
        if not kept or curve.seconds(rows + job.rows) <= limit:
            kept.append(job)
            rows += job.rows
    return kept if len(kept) < len(chosen) else chosen
