"""server.scheduler on jobs that compute nothing: order, pauses, row cap, turns, and that no job is lost."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.conditioning import Condition
from server.job import Bucket, Job, JobStatus
from server.scheduler import BEGUN_PER_ROW, DEADLINES_KEPT, Scheduler
from server.step_curve import StepCurve
from tests.fakes import CHECKPOINT, FakeReply, idle_table, make_job

SMALL, LARGE = {"height": 128, "width": 128}, {"height": 192, "width": 192}


def job(calls: int = 1, due: float = 0.0, **fields: Any) -> Job:
    return make_job(idle_table(calls), due=due, **fields)


def lone_row(calls: int = 1, due: float = 0.0, **fields: Any) -> Job:
    return job(calls, due, guidance_scale=1.0, **fields)


def with_rows(one: Job, rows: Sequence[int], tokens: int = 2) -> Job:
    """The same job with so many rows in each of its calls."""
    states = np.zeros((tokens, 3), np.float32)
    conditions = {count: Condition((states,) * count, None, (1.0,) * count) for count in rows}
    one.work = replace(one.work, conditions=tuple(conditions[count] for count in rows), reserved=max(rows))
    return one


def scheduler_with(*jobs: Job, max_rows: int = 2, cap: int = 0) -> Scheduler:
    scheduler = Scheduler(max_rows, lambda bucket: StepCurve(cap=cap))
    for one in jobs:
        scheduler.add(one)
    return scheduler


def turn(scheduler: Scheduler) -> list[Job]:
    """The jobs of one call, which is counted."""
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.update(batch.jobs)
    return list(batch.jobs)


def served(scheduler: Scheduler) -> list[list[Job]]:
    """The jobs of every call until nothing is left to do."""
    calls = []
    while scheduler.has_unfinished:
        calls.append(turn(scheduler))
    return calls


@pytest.mark.parametrize("max_rows", [-1, 0, 1])
def test_fewer_rows_than_a_guided_image_takes_are_refused(max_rows: int) -> None:
    with pytest.raises(ValueError, match=f"max_rows is {max_rows}"):
        Scheduler(max_rows)


def test_nothing_to_do_gives_no_batch() -> None:
    scheduler = Scheduler(4)
    assert scheduler.schedule() is None
    assert (scheduler.has_unfinished, scheduler.counts(), scheduler.expired(1e9)) == (False, {}, [])


def test_who_is_due_first_runs_first_whenever_it_came() -> None:
    jobs = [job(due=float(i * 7 % 20) - 5) for i in range(20)]
    assert served(scheduler_with(*jobs)) == [[one] for one in sorted(jobs, key=lambda one: one.due)]


def test_jobs_that_are_due_at_once_run_in_the_order_they_came() -> None:
    jobs = [job() for _ in range(30)]
    assert served(scheduler_with(*jobs)) == [[one] for one in jobs]


def test_a_more_urgent_job_pauses_those_that_have_begun() -> None:
    slow, urgent, most_urgent = job(3, due=9), job(2, due=5), job(1, due=1)
    scheduler = scheduler_with(slow)
    assert turn(scheduler) == [slow]
    scheduler.add(urgent)
    assert turn(scheduler) == [urgent]
    scheduler.add(most_urgent)
    assert served(scheduler) == [[most_urgent], [urgent], [slow], [slow]]
    assert [one.step_index for one in (slow, urgent, most_urgent)] == [3, 2, 1]


def test_paused_jobs_go_on_in_the_order_in_which_they_are_due() -> None:
    """Each begins before the next one comes, which is due before it; three rows fit."""
    jobs = [lone_row(5, due=10.0 - i) for i in range(6)]
    scheduler = scheduler_with(max_rows=3)
    for one in jobs:
        scheduler.add(one)
        assert one in turn(scheduler)
    order = list(dict.fromkeys(one for call in served(scheduler) for one in call))
    assert order == jobs[::-1]


@pytest.mark.parametrize(
    ("max_rows", "cap", "rows", "expected"),
    [
        (2, 0, [2, 2], [[0], [1]]),
        (2, 0, [1, 1, 1], [[0, 1], [2]]),
        (3, 0, [2, 1, 2, 1], [[0, 1], [2, 3]]),
        (3, 0, [2, 2, 1, 1], [[0], [1, 2], [3]]),
        (5, 0, [2, 2, 1, 2], [[0, 1, 2], [3]]),
        (16, 0, [2] * 9, [list(range(8)), [8]]),
        (16, 4, [2] * 5, [[0, 1], [2, 3], [4]]),
        (16, 5, [2, 2, 2, 1], [[0, 1], [2, 3]]),
        (8, 4, [6, 2, 2, 8], [[0], [1, 2], [3]]),
        (8, 4, [2, 6, 2], [[0], [1], [2]]),
        (8, 2, [3, 3, 1], [[0], [1], [2]]),
    ],
)
def test_as_many_jobs_share_a_call_as_rows_fit_the_cap_and_larger_ones_run_alone(
    max_rows: int, cap: int, rows: list[int], expected: list[list[int]]
) -> None:
    jobs = [with_rows(job(due=float(i)), [count]) for i, count in enumerate(rows)]
    calls = served(scheduler_with(*jobs, max_rows=max_rows, cap=cap))
    assert [[jobs.index(one) for one in call] for call in calls] == expected


def test_the_cap_follows_the_curve_of_the_bucket() -> None:
    """Small pictures gain from more rows, large ones do not."""
    flat, steep = StepCurve([(2, 1.0), (16, 1.0)]), StepCurve([(2, 1.0), (16, 8.0)])
    scheduler = Scheduler(16, lambda bucket: flat if bucket.height == 128 else steep)
    for due in range(8):
        scheduler.add(job(due=float(due), **SMALL))
        scheduler.add(job(due=100.0 + due, **LARGE))
    assert [len(call) for call in served(scheduler)] == [8] + [1] * 8
    assert [scheduler.row_cap(Bucket(CHECKPOINT, side, side, 2)) for side in (128, 192)] == [16, 2]


def test_rows_are_counted_as_each_call_takes_them() -> None:
    """Two jobs are guided in the second of three calls only; what does not fit then is not waited for."""
    jobs = [with_rows(job(3, due=float(i)), [1, 2, 1]) for i in range(2)]
    last = lone_row(due=2.0)
    scheduler = scheduler_with(*jobs, last, max_rows=2)
    assert served(scheduler) == [jobs, jobs[:1], [jobs[0], last], jobs[1:], jobs[1:]]


def test_a_waiting_job_that_does_not_fit_is_not_overtaken_by_later_ones() -> None:
    running, wide, narrow = lone_row(3, due=0), job(due=1), lone_row(due=2)
    scheduler = scheduler_with(running, wide, narrow)
    assert served(scheduler) == [[running]] * 3 + [[wide], [narrow]]


def test_a_batch_names_the_jobs_that_have_no_slot_yet() -> None:
    old, new = lone_row(3, due=0), lone_row(3, due=1)
    scheduler = scheduler_with(old, max_rows=4)
    first = scheduler.schedule()
    assert first is not None
    assert first.joined == (old,)
    assert old.status is JobStatus.RUNNING
    old.slot = 0
    scheduler.update(first.jobs)
    scheduler.add(new)
    assert new.status is JobStatus.WAITING
    second = scheduler.schedule()
    assert second is not None
    assert (second.jobs, second.joined, second.size) == ((old, new), (new,), 2)


def test_update_gives_the_jobs_that_have_made_all_their_calls() -> None:
    jobs = [lone_row(calls, due=float(calls)) for calls in (1, 2, 2)]
    scheduler = scheduler_with(*jobs, max_rows=4)
    for expected in (jobs[:1], jobs[1:]):
        batch = scheduler.schedule()
        assert batch is not None
        assert scheduler.update(batch.jobs) == expected
    assert {one.status for one in jobs} == {JobStatus.FINISHED}
    assert [one.step_index for one in jobs] == [1, 2, 2]


def test_no_more_jobs_begin_than_there_is_room_for_latents() -> None:
    """Each newcomer is more urgent than all before it, and would pause them all."""
    scheduler = scheduler_with(max_rows=2)
    assert scheduler.capacity == 2 * BEGUN_PER_ROW
    jobs = [lone_row(4, due=-float(i)) for i in range(3 * scheduler.capacity)]
    for one in jobs:
        scheduler.add(one)
        turn(scheduler)
        assert scheduler.counts()[one.bucket][1] <= scheduler.capacity
    served(scheduler)
    assert {one.status for one in jobs} == {JobStatus.FINISHED}


def test_buckets_never_share_a_call_and_the_most_urgent_job_of_all_chooses() -> None:
    small = [job(2, due=due, **SMALL) for due in (0, 3, 8)]
    large = [job(2, due=due, **LARGE) for due in (1, 2, 9)]
    longer = with_rows(job(due=2.5, **SMALL), [2], tokens=154)
    scheduler = scheduler_with(*small, *large, longer, max_rows=4)
    calls = []
    while (batch := scheduler.schedule()) is not None:
        assert {one.bucket for one in batch.jobs} == {batch.bucket}
        scheduler.update(batch.jobs)
        calls.append(list(batch.jobs))
    both = small[:2], large[:2]
    assert calls == [both[0]] * 2 + [both[1]] * 2 + [[longer]] + [small[2:]] * 2 + [large[2:]] * 2


def test_an_old_job_is_not_starved_by_newcomers() -> None:
    """Every second one call is made and a job comes that is due in three."""
    old = job(due=500.0)
    scheduler = scheduler_with(old)
    for second in range(1000):
        scheduler.add(job(due=second + 3.0))
        if turn(scheduler) == [old]:
            break
    assert 490 <= second <= 500


def test_deadlines_that_have_passed_are_told_once() -> None:
    jobs = [job(9, deadline=deadline) for deadline in (5.0, 3.0, 7.0)] + [job(9)]
    scheduler = scheduler_with(*jobs, max_rows=4)
    turn(scheduler)
    assert [scheduler.expired(now) for now in (2.9, 3.0, 3.1, 3.2)] == [[], [], [jobs[1]], []]
    assert [scheduler.expired(now) for now in (100.0, 200.0)] == [[jobs[0], jobs[2]], []]


def test_jobs_that_have_ended_do_not_expire() -> None:
    done, given_up, late = job(1, deadline=5.0), job(9, due=1, deadline=5.0), job(9, due=2, deadline=6.0)
    scheduler = scheduler_with(done, given_up, late)
    turn(scheduler)
    scheduler.end(given_up, JobStatus.CANCELLED)
    assert scheduler.expired(10.0) == [late]


def test_jobs_that_have_ended_are_not_kept_for_their_deadlines() -> None:
    """A job holds its request's images; many that allow a day would be kept for a day."""
    scheduler, replies = scheduler_with(first := job(10_000, deadline=80_000.0), max_rows=4), []
    for number in range(8 * DEADLINES_KEPT):
        one = job(deadline=86_400.0 + number)
        replies.append(weakref.ref(one.reply))
        scheduler.add(one)
        if number % 3:
            scheduler.end(one, JobStatus.CANCELLED)
        assert turn(scheduler)[0] is first
        assert scheduler.expired(0.0) == []
    del one
    gc.collect()
    assert sum(reply() is not None for reply in replies) <= DEADLINES_KEPT + 2
    assert isinstance(replies[-1](), FakeReply)


@pytest.mark.parametrize("runs", [True, False])
def test_a_job_that_ends_early_frees_its_rows_at_the_next_call(runs: bool) -> None:
    unwanted, other = job(9), job(due=100.0)
    scheduler = scheduler_with(unwanted, other)
    if runs:
        assert turn(scheduler) == [unwanted]
    scheduler.end(unwanted, JobStatus.CANCELLED)
    assert unwanted.status is JobStatus.CANCELLED
    assert scheduler.counts() == {other.bucket: (1, 0)}
    assert served(scheduler) == [[other]]
    assert scheduler.counts() == {other.bucket: (0, 0)}


def test_counts_are_those_that_wait_and_those_that_have_begun() -> None:
    jobs = [job(2, due=float(i)) for i in range(6)] + [job(due=9.0, **LARGE)]
    scheduler = scheduler_with(*jobs, max_rows=4)
    small, large = jobs[0].bucket, jobs[-1].bucket
    assert scheduler.counts() == {small: (6, 0), large: (1, 0)}
    turn(scheduler)
    assert scheduler.counts() == {small: (4, 2), large: (1, 0)}
    scheduler.end(jobs[1], JobStatus.CANCELLED)
    scheduler.end(jobs[5], JobStatus.CANCELLED)
    assert scheduler.counts() == {small: (3, 1), large: (1, 0)}
    served(scheduler)
    assert scheduler.counts() == {small: (0, 0), large: (0, 0)}


def test_what_ended_while_it_waited_is_dropped_in_the_end() -> None:
    """All but the first, which stays at the front and would hold up a queue that drops at the front only."""
    scheduler = scheduler_with(first := job(10_000), max_rows=2)
    turn(scheduler)
    held = 0
    for number in range(1500):
        one = job(due=1.0 + number)
        scheduler.add(one)
        if number % 100:
            scheduler.end(one, JobStatus.CANCELLED)
        if number % 7 == 0:
            assert turn(scheduler) == [first]
            held = max(held, len(scheduler._queues[first.bucket].waiting))
    assert scheduler.counts() == {first.bucket: (15, 1)}
    assert held <= 2 * 15 + 8


def test_isolated_jobs_are_served_alone_and_take_turns_with_the_others() -> None:
    suspects, others = [lone_row(5, due=float(i)) for i in range(3)], [lone_row(4, due=5.0 + i) for i in range(3)]
    scheduler = scheduler_with(*suspects, *others, max_rows=8)
    turn(scheduler)
    scheduler.isolate(suspects)
    calls = [turn(scheduler) for _ in range(6)]
    together = [[*suspects[:tried], *others] for tried in (1, 2, 3)]
    assert calls == [suspects[:1], together[0], suspects[1:2], together[1], suspects[2:], together[2]]


def test_isolated_jobs_follow_one_another_when_there_are_no_others() -> None:
    suspects = [lone_row(2, due=float(i)) for i in range(3)]
    scheduler = scheduler_with(*suspects, max_rows=8)
    turn(scheduler)
    scheduler.isolate(suspects)
    assert served(scheduler) == [[one] for one in suspects]


def test_an_isolated_job_that_ends_is_not_served() -> None:
    suspects = [lone_row(2, due=float(i)) for i in range(3)]
    scheduler = scheduler_with(*suspects, max_rows=8)
    turn(scheduler)
    scheduler.isolate(suspects)
    scheduler.end(suspects[1], JobStatus.CANCELLED)
    assert served(scheduler) == [suspects[:1], suspects[2:]]


class Counted(float):
    """Counts how often keys are compared."""

    comparisons = 0

    def __lt__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float.__lt__(self, other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return float.__eq__(self, other)

    __hash__ = float.__hash__


def highest_costs(waiting: int) -> tuple[int, int, int]:
    """Comparisons of keys that adding, ending and a turn take at most, with so many jobs that wait."""
    template, scheduler = job(calls=2), Scheduler(16)
    jobs = []
    for i in range(waiting):
        # In a scattered order, none twice.
        due = Counted(i * 7919 % waiting)
        jobs.append(Job(template.request, 0, template.work, template.reply, 0.0, due, deadline=Counted(due + 1e6)))
    highest = {"add": 0, "end": 0, "turn": 0}

    def spent(kind: str, before: int) -> None:
        highest[kind] = max(highest[kind], Counted.comparisons - before)

    for one in jobs:
        before = Counted.comparisons
        scheduler.add(one)
        spent("add", before)
    for _ in range(300):
        before = Counted.comparisons
        assert scheduler.expired(0.0) == []
        turn(scheduler)
        spent("turn", before)
        before = Counted.comparisons
        if candidates := [one for one in jobs[:50] if one.status is JobStatus.WAITING]:
            scheduler.end(candidates[-1], JobStatus.CANCELLED)
        spent("end", before)
        if not scheduler.has_unfinished:
            break
    return highest["add"], highest["end"], highest["turn"]


def test_the_cost_of_a_turn_hardly_grows_with_the_queue() -> None:
    few, many = highest_costs(10), highest_costs(10_000)
    depth = math.ceil(math.log2(10_000))
    # Two comparisons for a pair of keys: whether they are equal, and which is less. Two heaps hold a job.
    assert many[0] <= 2 * 2 * (depth + 1)
    assert many[1] == few[1] == 0
    # A call of 16 rows takes 8 jobs from the heap, and looks once at each that has begun.
    assert many[2] <= 2 * 8 * (2 * (depth + 1) + 4)
