"""server.scheduler on jobs that compute nothing: order, row cap, turns, and that no job is lost."""

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import scheduler as module
from server.conditioning import Condition
from server.job import Batch, Job, JobStatus
from server.scheduler import PATIENCE_SECONDS, PRIORITY_SECONDS, Scheduler, due
from tests.fakes import FakeReply, idle_table, make_job

SMALL, LARGE = {"height": 128, "width": 128}, {"height": 192, "width": 192}


def job(calls: int = 1, **fields: Any) -> Job:
    return make_job(idle_table(calls), **fields)


def lone_row(calls: int = 1, **fields: Any) -> Job:
    return job(calls, guidance_scale=1.0, **fields)


def reply_of(job: Job) -> FakeReply:
    return cast(FakeReply, job.reply)


def scheduler_with(*jobs: Job, max_rows: int = 2) -> Scheduler:
    scheduler = Scheduler(max_rows)
    for one in jobs:
        scheduler.add(one)
    return scheduler


def turn(scheduler: Scheduler) -> tuple[list[Job], list[Job]]:
    """One call: the jobs that it served, and those that it finished."""
    batch = scheduler.schedule()
    assert batch is not None
    return list(batch.jobs), scheduler.update(batch)


def finishing_order(scheduler: Scheduler) -> list[Job]:
    order = []
    while scheduler.has_unfinished:
        order += turn(scheduler)[1]
    return order


def drop(scheduler: Scheduler, now: float) -> list[Job]:
    """What the loop does before each call."""
    found = scheduler.unwanted(now)
    for one in found:
        scheduler.remove(one, JobStatus.CANCELLED)
    return found


ORDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "earlier arrival": ({"arrival": 1.0}, {"arrival": 2.0}),
    "higher priority": ({"arrival": 9.0, "priority": 1}, {"arrival": 0.0}),
    "default before lower priority": ({"arrival": 9.0}, {"arrival": 0.0, "priority": -1}),
    "any deadline before patience ends": ({"arrival": 5.0, "deadline": 15.0}, {"arrival": 0.0}),
    "earlier deadline": ({"arrival": 1.0, "deadline": 20.0}, {"arrival": 0.0, "deadline": 30.0}),
    "earlier arrival though its deadline is far": ({"arrival": 0.0, "deadline": 1e6}, {"arrival": 1.0}),
    "higher priority among equal deadlines": ({"deadline": 30.0, "priority": 2}, {"deadline": 30.0}),
    "low priority that waited long": ({"arrival": 0.0, "priority": -10}, {"arrival": 201.0, "priority": 10}),
    "high priority while the low one waited little": (
        {"arrival": 199.0, "priority": 10},
        {"arrival": 0.0, "priority": -10},
    ),
}


@pytest.mark.parametrize(("first", "second"), ORDERS.values(), ids=ORDERS.keys())
def test_jobs_run_in_order_of_deadline_priority_and_arrival(first: dict[str, Any], second: dict[str, Any]) -> None:
    ahead, behind = job(**first), job(**second)
    assert due(ahead) < due(behind)
    assert finishing_order(scheduler_with(behind, ahead)) == [ahead, behind]
    ahead, behind = job(**first), job(**second)
    assert finishing_order(scheduler_with(ahead, behind)) == [ahead, behind]


def test_equal_jobs_run_in_the_order_they_were_added() -> None:
    jobs = [job() for _ in range(50)]
    assert finishing_order(scheduler_with(*jobs)) == jobs


def test_an_unimportant_job_is_not_starved_by_important_ones() -> None:
    """Every second one call is made and one job of the highest priority arrives."""
    old = job(priority=-10)
    scheduler = scheduler_with(old, job(priority=10))
    for second in range(1, 1000):
        scheduler.add(job(arrival=float(second), priority=10))
        if old in turn(scheduler)[1]:
            break
    assert second == pytest.approx(20 * PRIORITY_SECONDS, abs=2)


def test_a_deadline_does_not_let_newcomers_starve_a_job_without() -> None:
    old = job()
    scheduler = scheduler_with(old)
    for second in range(1, 1000):
        scheduler.add(job(arrival=float(second), deadline=second + 1.0))
        if old in turn(scheduler)[1]:
            break
    assert second <= PATIENCE_SECONDS + 1


@pytest.mark.parametrize("max_rows", [-1, 0, 1])
def test_fewer_rows_than_a_guided_image_takes_are_refused(max_rows: int) -> None:
    with pytest.raises(ValueError, match=f"max_rows is {max_rows}"):
        Scheduler(max_rows)


@pytest.mark.parametrize(
    ("max_rows", "guided", "expected"),
    [
        (2, [True, True], [[0], [1]]),
        (2, [False, False, False], [[0, 1], [2]]),
        (3, [True, False, True, False], [[0, 1], [2, 3]]),
        (3, [True, True, False, False], [[0], [1, 2], [3]]),
        (5, [True, True, False, True], [[0, 1, 2], [3]]),
        (16, [True] * 9, [list(range(8)), [8]]),
    ],
)
def test_as_many_jobs_share_a_call_as_rows_fit(max_rows: int, guided: list[bool], expected: list[list[int]]) -> None:
    jobs = [job() if two else lone_row() for two in guided]
    scheduler = scheduler_with(*jobs, max_rows=max_rows)
    served = []
    while scheduler.has_unfinished:
        served.append([jobs.index(one) for one in turn(scheduler)[0]])
    assert served == expected


def test_a_job_that_does_not_fit_is_not_overtaken() -> None:
    running, wide, narrow = lone_row(3), job(), lone_row()
    scheduler = scheduler_with(running, wide, narrow)
    assert [turn(scheduler)[0] for _ in range(3)] == [[running]] * 3
    assert turn(scheduler)[0] == [wide]
    assert turn(scheduler)[0] == [narrow]


def test_jobs_join_and_leave_between_calls() -> None:
    a, b, c, d = lone_row(1), lone_row(3), lone_row(2), lone_row(1)
    scheduler = scheduler_with(a, b, c)
    expected = [([a, b], [a, b], [a]), ([b, c], [c], []), ([b, c], [], [b, c])]
    for jobs, joined, finished in expected:
        batch = scheduler.schedule()
        assert batch is not None
        assert (list(batch.jobs), list(batch.joined)) == (jobs, joined)
        assert all(one.status is JobStatus.RUNNING for one in batch.jobs)
        assert scheduler.update(batch) == finished
    scheduler.add(d)
    assert d.status is JobStatus.WAITING
    assert turn(scheduler) == ([d], [d])
    assert {one.status for one in (a, b, c, d)} == {JobStatus.FINISHED}
    assert [one.step_index for one in (a, b, c, d)] == [1, 3, 2, 1]


def test_an_important_newcomer_does_not_push_a_running_job_out() -> None:
    running = job(3)
    scheduler = scheduler_with(running)
    turn(scheduler)
    scheduler.add(job(priority=10))
    assert turn(scheduler)[0] == turn(scheduler)[0] == [running]


def test_nothing_to_do_gives_no_batch() -> None:
    scheduler = Scheduler(4)
    assert scheduler.schedule() is None
    assert (scheduler.has_unfinished, scheduler.waiting, scheduler.unwanted(0.0)) == (False, 0, [])


def test_waiting_and_unfinished_are_counted() -> None:
    scheduler = scheduler_with(job(2), job(), job(**LARGE))
    assert (scheduler.waiting, scheduler.has_unfinished) == (3, True)
    scheduler.schedule()
    assert (scheduler.waiting, scheduler.has_unfinished) == (2, True)
    finishing_order(scheduler)
    assert (scheduler.waiting, scheduler.has_unfinished) == (0, False)


def of_tokens(one: Job, tokens: int) -> Job:
    """The same job with prompts of so many tokens."""
    condition = one.condition
    states = np.zeros((tokens, 3), np.float32)
    longer = Condition((states,), None if condition.negative is None else states, condition.scales)
    work = replace(one.work, conditions=(longer,) * one.calls)
    return Job(one.request, one.index, work, one.reply, one.arrival, one.deadline)


def test_buckets_take_turns_and_never_share_a_call() -> None:
    jobs = [job(4, **SMALL), job(4, **LARGE), job(2, **SMALL), job(2, height=192, width=128)]
    jobs.append(of_tokens(job(3, **SMALL), 154))
    scheduler = scheduler_with(*jobs, max_rows=4)
    buckets = []
    while (batch := scheduler.schedule()) is not None:
        assert {one.bucket for one in batch.jobs} == {batch.bucket}
        buckets.append(batch.bucket)
        scheduler.update(batch)
    small, large, other, longer = (128, 128, 2), (192, 192, 2), (192, 128, 2), (128, 128, 154)
    assert buckets == [small, large, other, longer] * 2 + [small, large, longer] + [small, large]


def test_a_bucket_that_was_idle_does_not_make_up_for_it() -> None:
    scheduler = scheduler_with(job(20, **SMALL))
    for _ in range(10):
        turn(scheduler)
    scheduler.add(job(5, **LARGE))
    buckets = [turn(scheduler)[0][0].bucket for _ in range(6)]
    assert buckets == [(192, 192, 2), (128, 128, 2)] * 3


def guided_once(calls: int) -> Job:
    """Guided in its second call only."""
    one = job(calls)
    alone = Condition(one.condition.positives, None, (1.0,))
    conditions = tuple(one.condition if call == 1 else alone for call in range(calls))
    return Job(one.request, 0, replace(one.work, conditions=conditions), one.reply, 0.0)


def test_rows_are_kept_for_the_call_that_takes_most() -> None:
    """Jobs that are unguided now may be guided later; none may then be left without its rows."""
    sometimes = [guided_once(3), guided_once(3)]
    scheduler = scheduler_with(*sometimes, lone_row(1), max_rows=4)
    batch = scheduler.schedule()
    assert batch is not None
    assert (list(batch.jobs), batch.size) == (sometimes, 2)
    sizes = []
    while scheduler.has_unfinished:
        batch = scheduler.schedule()
        assert batch is not None
        sizes.append(batch.size)
        scheduler.update(batch)
    assert sizes == [2, 4, 2, 1]


CAUSES: dict[str, dict[str, Any]] = {"cancelled": {}, "answered": {}, "deadline": {"deadline": 5.0}}


def make_unwanted(one: Job, cause: str) -> None:
    if cause != "deadline":
        setattr(reply_of(one), cause, True)


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("runs", [True, False])
def test_an_unwanted_job_is_given_once_and_frees_its_rows(cause: str, runs: bool) -> None:
    unwanted, other = job(9, **CAUSES[cause]), job(arrival=100.0)
    scheduler = scheduler_with(unwanted, other)
    if runs:
        assert turn(scheduler)[0] == [unwanted]
    assert drop(scheduler, 5.0) == []
    make_unwanted(unwanted, cause)
    assert drop(scheduler, 5.5) == [unwanted]
    assert drop(scheduler, 6.0) == []
    assert unwanted.status is JobStatus.CANCELLED
    assert turn(scheduler) == ([other], [other])
    assert not scheduler.has_unfinished


def test_every_running_job_that_is_unwanted_is_given_at_once() -> None:
    jobs = [lone_row(5) for _ in range(4)]
    scheduler = scheduler_with(*jobs, max_rows=4)
    turn(scheduler)
    for one in jobs[1:3]:
        reply_of(one).cancelled = True
    assert drop(scheduler, 0.0) == jobs[1:3]
    assert turn(scheduler)[0] == [jobs[0], jobs[3]]


def test_an_unwanted_job_behind_a_wanted_one_is_given_before_it_is_finished() -> None:
    running, behind, last = job(2), job(3), job(1)
    scheduler = scheduler_with(running, behind, last)
    reply_of(behind).answered = True
    given, finished = [], []
    while scheduler.has_unfinished:
        given += drop(scheduler, 0.0)
        finished += turn(scheduler)[1]
    assert (given, finished) == ([behind], [running, last])
    assert behind.step_index <= 1


def test_a_failed_call_frees_the_rows_of_its_jobs() -> None:
    jobs, later = [lone_row(5), lone_row(5)], job()
    scheduler = scheduler_with(*jobs, later)
    batch = scheduler.schedule()
    assert batch is not None
    for one in batch.jobs:
        scheduler.remove(one, JobStatus.FAILED)
    assert drop(scheduler, 0.0) == []
    assert turn(scheduler) == ([later], [later])
    assert {one.status for one in jobs} == {JobStatus.FAILED}


class Counted(float):
    """Counts how often keys are compared."""

    comparisons = 0

    def __lt__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float(self) < float(other)


def test_the_cost_of_a_turn_hardly_grows_with_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "due", lambda one: Counted(due(one)))
    waiting = 10_000
    template = job(calls=2)
    # Arrivals in a scattered order, none twice.
    arrivals = [float(i * 7919 % waiting) for i in range(waiting)]
    jobs = [Job(template.request, 0, template.work, template.reply, arrival) for arrival in arrivals]
    scheduler = Scheduler(16)
    highest = {"add": 0, "turn": 0}

    def spent(kind: str, before: int) -> None:
        highest[kind] = max(highest[kind], Counted.comparisons - before)

    for one in jobs:
        before = Counted.comparisons
        scheduler.add(one)
        spent("add", before)
    finished = []
    while scheduler.has_unfinished:
        before = Counted.comparisons
        assert scheduler.unwanted(0.0) == []
        finished += turn(scheduler)[1]
        spent("turn", before)
    depth = math.ceil(math.log2(waiting))
    assert highest["add"] <= depth + 1
    assert highest["turn"] <= 8 * 2 * (depth + 1)
    assert finished == sorted(jobs, key=lambda one: one.arrival)


JOBS = st.fixed_dictionaries(
    {
        "calls": st.integers(1, 4),
        "guidance_scale": st.sampled_from([1.0, 5.0]),
        "priority": st.integers(-10, 10),
        "wait": st.one_of(st.none(), st.floats(0, 20)),
        "height": st.sampled_from([128, 192]),
    }
)
ACTIONS = st.one_of(
    JOBS,
    st.just("turn"),
    st.just("turn"),
    st.tuples(st.sampled_from(["cancelled", "answered"]), st.integers(0, 100)),
    st.just("failure"),
)


class Witness:
    """Drives a scheduler as the loop does, and keeps account of every job."""

    def __init__(self, max_rows: int) -> None:
        self.scheduler = Scheduler(max_rows)
        self.jobs: list[Job] = []
        self.ended: dict[Job, JobStatus] = {}
        self.calls: dict[Job, int] = {}
        self.now = 0.0

    def add(self, wait: float | None, **fields: Any) -> None:
        deadline = None if wait is None else self.now + wait
        one = job(arrival=self.now, deadline=deadline, width=fields["height"], **fields)
        self.jobs.append(one)
        self.calls[one] = 0
        self.scheduler.add(one)

    def spoil(self, attribute: str, index: int) -> None:
        if self.jobs:
            setattr(reply_of(self.jobs[index % len(self.jobs)]), attribute, True)

    def end(self, one: Job, status: JobStatus) -> None:
        assert one not in self.ended
        self.ended[one] = status

    def turn(self, *, fails: bool = False) -> bool:
        self.now += 1
        for one in self.scheduler.unwanted(self.now):
            late = one.deadline is not None and self.now > one.deadline
            assert late or reply_of(one).cancelled or reply_of(one).answered
            self.scheduler.remove(one, JobStatus.CANCELLED)
            self.end(one, JobStatus.CANCELLED)
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        self.check(batch)
        if fails:
            for one in batch.jobs:
                self.scheduler.remove(one, JobStatus.FAILED)
                self.end(one, JobStatus.FAILED)
            return True
        for one in batch.jobs:
            self.calls[one] += 1
        for one in self.scheduler.update(batch):
            self.end(one, JobStatus.FINISHED)
        return True

    def check(self, batch: Batch) -> None:
        assert 0 < batch.size <= self.scheduler.max_rows
        assert len(set(batch.jobs)) == len(batch.jobs)
        assert {one.bucket for one in batch.jobs} == {batch.bucket}
        assert not self.ended.keys() & set(batch.jobs)
        assert set(batch.joined) == {one for one in batch.jobs if self.calls[one] == 0}


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(2, 7), st.lists(ACTIONS, max_size=60))
def test_no_job_is_lost_repeated_or_cut_short_whatever_happens(max_rows: int, actions: list[Any]) -> None:
    witness = Witness(max_rows)
    for action in actions:
        match action:
            case dict():
                witness.add(**action)
            case (attribute, index):
                witness.spoil(attribute, index)
            case _:
                witness.turn(fails=action == "failure")
    while witness.turn():
        pass
    assert set(witness.ended) == set(witness.jobs)
    assert all(witness.ended[one] is one.status for one in witness.jobs)
    finished = [one for one, status in witness.ended.items() if status is JobStatus.FINISHED]
    assert [witness.calls[one] for one in finished] == [one.calls for one in finished]
    assert all(witness.calls[one] < one.calls for one in witness.jobs if one not in finished)
    assert (witness.scheduler.waiting, witness.scheduler.has_unfinished) == (0, False)
