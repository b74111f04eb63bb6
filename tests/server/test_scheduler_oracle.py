"""server.scheduler against a list that is sorted anew for every call, under anything that a loop may do."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.conditioning import Condition
from server.job import Bucket, Job, JobStatus
from server.scheduler import GUEST_SHARE, GUEST_STRETCH, Scheduler
from server.step_curve import StepCurve
from tests.fakes import FakeReply, idle_table, make_job
from tests.virtual_server import device


@functools.cache
def template(side: int, calls: int) -> Job:
    return make_job(idle_table(calls), height=side, width=side)


@functools.cache
def condition(rows: int, tokens: int) -> Condition:
    states = np.zeros((tokens, 3), np.float32)
    return Condition((states,) * rows, None, (1.0,) * rows)


def made(rows: tuple[int, ...], side: int, tokens: int, due: float, arrival: float) -> Job:
    """A job with so many rows in each of its calls."""
    like = template(side, len(rows))
    conditions = tuple(condition(count, tokens) for count in rows)
    work = replace(like.work, conditions=conditions, reserved=max(rows))
    return Job(like.request, 0, work, FakeReply(like.request), arrival, due)


class PlainScheduler:
    """What the scheduler should do where no job is a guest.

    Attributes:
        open: in the order in which they came.
        begun, alone: of these.
        was_alone: buckets whose last call was made for a job without others.
    """

    def __init__(self, cap: int, capacity: int) -> None:
        self.cap, self.capacity = cap, capacity
        self.open: list[Job] = []
        self.begun: list[Job] = []
        self.alone: list[Job] = []
        self.was_alone: set[Bucket] = set()
        self.buckets: list[Bucket] = []

    def add(self, job: Job) -> None:
        self.open.append(job)
        if job.bucket not in self.buckets:
            self.buckets.append(job.bucket)

    def end(self, job: Job) -> None:
        for jobs in (self.open, self.begun, self.alone):
            if job in jobs:
                jobs.remove(job)

    def next(self) -> list[Job]:
        """The jobs of the next call."""
        if not self.open:
            return []
        first = min(self.open, key=lambda job: (job.due, self.buckets.index(job.bucket)))
        mine = sorted((job for job in self.open if job.bucket == first.bucket), key=lambda job: job.due)
        suspects = [job for job in self.alone if job.bucket == first.bucket]
        chosen = self.most_urgent(mine) if not suspects or first.bucket in self.was_alone else []
        if chosen:
            self.was_alone.discard(first.bucket)
            return chosen
        self.was_alone.add(first.bucket)
        self.alone.remove(suspects[0])
        return suspects[:1]

    def most_urgent(self, mine: list[Job]) -> list[Job]:
        chosen: list[Job] = []
        for job in mine:
            rows = sum(other.rows for other in chosen)
            if rows >= self.cap:
                break
            fits = not chosen or rows + job.rows <= self.cap
            if job not in self.begun:
                if sum(other in self.begun for other in mine) >= self.capacity:
                    continue
                if not fits:
                    break
                self.begun.append(job)
            if fits and job not in self.alone:
                chosen.append(job)
        return chosen


class Witness:
    """Drives a scheduler as the loop does, compares each call, and keeps account of every job."""

    def __init__(self, max_rows: int, curve: StepCurve, capacity: int) -> None:
        self.scheduler = Scheduler(max_rows, lambda bucket: curve)
        self.scheduler.capacity = capacity
        self.plain = PlainScheduler(curve.row_cap(max_rows), capacity)
        self.jobs: list[Job] = []
        self.ended: dict[Job, JobStatus] = {}
        self.calls: dict[Job, int] = {}
        self.curve = curve
        self.now = 1.0
        self.arrival: float | None = 0.0

    def add(self, rows: list[int], side: int, tokens: int, due: int) -> None:
        job = made(tuple(rows), side, tokens, float(due), self.now if self.arrival is None else self.arrival)
        self.jobs.append(job)
        self.calls[job] = 0
        self.scheduler.add(job)
        self.plain.add(job)

    def end(self, job: Job, status: JobStatus) -> None:
        self.scheduler.end(job, status)
        self.note(job, status)

    def note(self, job: Job, status: JobStatus) -> None:
        assert job not in self.ended, "ended twice"
        self.ended[job] = status
        self.plain.end(job)

    def cancel(self, index: int) -> None:
        if self.plain.open:
            self.end(self.plain.open[index % len(self.plain.open)], JobStatus.CANCELLED)

    def turn(self, at_fault: set[int] | None = None) -> bool:
        """One call, which fails for the jobs at these places."""
        batch = self.scheduler.schedule(self.now)
        self.compare(list(batch.jobs) if batch else [], self.plain.next())
        if batch is None:
            return False
        self.now += self.curve.seconds(batch.size) or 1.0
        assert {job.bucket for job in batch.jobs} == {batch.bucket}
        assert set(batch.joined) == {job for job in batch.jobs if job.slot < 0}
        assert all(job.status is JobStatus.RUNNING for job in batch.jobs)
        for job in batch.joined:
            job.slot = 0
        broken = [job for place, job in enumerate(batch.jobs) if place in (at_fault or ())]
        healthy = [job for job in batch.jobs if job not in broken]
        if len(batch.jobs) == 1:
            for job in broken:
                self.end(job, JobStatus.FAILED)
        else:
            self.scheduler.isolate(broken)
            self.plain.alone += broken
        for job in healthy:
            self.calls[job] += 1
        finished = self.scheduler.update(healthy)
        assert finished == [job for job in healthy if self.calls[job] == job.calls]
        for job in finished:
            self.note(job, JobStatus.FINISHED)
        return True

    def compare(self, jobs: list[Job], expected: list[Job]) -> None:
        assert jobs == expected

    def check(self) -> None:
        for bucket, (waiting, begun) in self.scheduler.counts().items():
            mine = [job for job in self.plain.open if job.bucket == bucket]
            assert begun == sum(job in self.plain.begun for job in mine) <= self.plain.capacity
            assert waiting == len(mine) - begun
        assert self.scheduler.has_unfinished == bool(self.plain.open)


def jobs_of(calls: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "rows": calls.flatmap(lambda count: st.lists(st.integers(1, 4), min_size=count, max_size=count)),
            "side": st.sampled_from([128, 128, 192]),
            "tokens": st.sampled_from([2, 2, 2, 3]),
            "due": st.integers(0, 12),
        }
    )


def actions(jobs: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[Any]]:
    failures = st.one_of(st.just(set(range(99))), st.sets(st.integers(0, 4)))
    return st.lists(st.one_of(jobs, jobs, st.just("turn"), st.integers(0, 100), failures), max_size=50)


def play(witness: Witness, played: list[Any]) -> None:
    for action in played:
        match action:
            case dict():
                witness.add(**action)
            case int():
                witness.cancel(action)
            case set():
                witness.turn(action)
            case _:
                witness.turn()
        witness.check()
    left = sum(job.calls for job in witness.plain.open)
    for _ in range(left + 1):
        if not witness.turn():
            break
    witness.check()
    assert set(witness.ended) == set(witness.jobs), "lost"
    assert all(witness.ended[job] is job.status for job in witness.jobs)
    for job, status in witness.ended.items():
        assert (witness.calls[job] == job.calls) is (status is JobStatus.FINISHED)
        assert witness.calls[job] == job.step_index


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.integers(2, 9), st.integers(0, 9), st.integers(1, 5), actions(jobs_of(st.integers(1, 6))))
def test_calls_are_those_of_a_sorted_list_and_no_job_is_lost_or_served_beyond_its_end(
    max_rows: int, cap: int, capacity: int, played: list[Any]
) -> None:
    play(Witness(max_rows, StepCurve(cap=cap), capacity), played)


CURVES = st.one_of(
    st.just([(rows, device(rows)) for rows in range(1, 10)]),
    st.dictionaries(st.integers(1, 9), st.floats(1e-3, 100.0), min_size=1).map(lambda found: list(found.items())),
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.integers(2, 9), CURVES, actions(jobs_of(st.integers(3, 6))))
def test_jobs_of_similar_length_are_never_held_back_whatever_the_curve(
    max_rows: int, points: list[tuple[int, float]], played: list[Any]
) -> None:
    play(Witness(max_rows, StepCurve(points), 4 * max_rows), played)


class GuestWitness(Witness):
    """Expects calls to be smaller than the plain ones for the sake of guests, and never otherwise.

    Attributes:
        smaller: how many calls were.
    """

    def __init__(self, max_rows: int) -> None:
        super().__init__(max_rows, StepCurve([(rows, device(rows)) for rows in range(1, max_rows + 1)]), 4 * max_rows)
        self.arrival = None
        self.smaller = 0

    def compare(self, jobs: list[Job], expected: list[Job]) -> None:
        limits = self.limits(expected)
        if not limits:
            assert jobs == expected
            return
        limit, rows = min(limits.values()), sum(job.rows for job in jobs)
        assert set(jobs) <= set(expected)
        assert any(limits.get(job) == limit for job in jobs)
        assert len(jobs) == 1 or self.curve.seconds(rows) <= limit
        dropped = set(expected) - set(jobs)
        assert all(self.curve.seconds(rows + job.rows) > limit for job in dropped)
        self.smaller += bool(dropped)

    def limits(self, jobs: list[Job]) -> dict[Job, float]:
        """Seconds that the calls of each guest may take for it to end in time, if it still can."""
        longest = max((job.calls for job in jobs), default=0)
        found = {}
        for job in jobs:
            alone = self.curve.seconds(job.rows)
            left = job.arrival + GUEST_STRETCH * job.calls * alone - self.now
            if job.calls <= GUEST_SHARE * longest and left >= alone * (job.calls - job.step_index):
                found[job] = left / (job.calls - job.step_index)
        return found


MIXED = st.sampled_from([1, 2, 3, 5, 5, 8, 12])


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.integers(4, 16), actions(jobs_of(MIXED)))
def test_calls_are_smaller_only_for_guests_that_can_still_end_in_time(max_rows: int, played: list[Any]) -> None:
    play(GuestWitness(max_rows), played)


def test_calls_are_made_smaller_for_a_guest_until_it_ends() -> None:
    witness = GuestWitness(16)
    for _ in range(7):
        witness.add([2] * 40, 128, 2, due=5)
    witness.turn()
    witness.add([2] * 10, 128, 2, due=4)
    for _ in range(10):
        witness.turn()
    assert witness.ended == {witness.jobs[7]: JobStatus.FINISHED}
    assert witness.smaller == 10
    assert witness.now - witness.jobs[7].arrival <= 1.5 * 10 * device(2)
    for _ in range(5):
        witness.turn()
    assert witness.smaller == 10


def test_of_two_guests_the_one_with_less_time_left_decides() -> None:
    witness = GuestWitness(16)
    for _ in range(6):
        witness.add([2] * 40, 128, 2, due=5)
    witness.add([2] * 10, 128, 2, due=4)
    witness.now += 3 * device(2)
    witness.add([2] * 10, 128, 2, due=3)
    hurried, other = witness.jobs[-2:]
    witness.turn()
    assert (hurried.step_index, other.step_index) == (1, 0)
