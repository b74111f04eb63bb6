"""server.backlog against a plain list, alone and under several threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.backlog import FINE_PER_SECOND, FINE_PER_WIDE, Backlog
from tests.fakes import restless_threads


def fine_bin(due: float) -> int:
    return int(due * FINE_PER_SECOND)


class PlainList:
    """Open jobs, each as [due, seconds left]."""

    def __init__(self) -> None:
        self.jobs: list[list[float]] = []

    def ahead(self, due: float) -> tuple[float, int]:
        """Jobs due within the same part of a second count too."""
        found = [seconds for other, seconds in self.jobs if fine_bin(other) <= fine_bin(due)]
        return sum(found), len(found)


DUES = st.one_of(st.floats(-20, 60), st.floats(1e6, 1e6 + 3600), st.integers(-5, 40).map(lambda n: n / FINE_PER_SECOND))
ACTIONS = st.one_of(
    st.tuples(st.just("enter"), DUES, st.floats(0, 100)),
    st.tuples(st.just("spend"), st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), max_size=4), st.none()),
    st.tuples(st.just("leave"), st.integers(0, 50), st.none()),
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(ACTIONS, max_size=40), st.lists(DUES, min_size=1, max_size=5))
def test_sums_are_those_of_a_plain_list_whatever_happens(actions: list[Any], asked: list[float]) -> None:
    backlog, plain = Backlog(), PlainList()
    for action, value, seconds in actions:
        if action == "enter":
            backlog.change(value, seconds, 1)
            plain.jobs.append([value, seconds])
        elif action == "spend":
            parts: list[tuple[list[float], float]] = []
            for index, share in value:
                if index < len(plain.jobs) and plain.jobs[index] not in [part[0] for part in parts]:
                    parts.append((plain.jobs[index], share * plain.jobs[index][1]))
            backlog.spend([(job[0], done) for job, done in parts])
            for job, done in parts:
                job[1] -= done
        elif value < len(plain.jobs):
            due, left = plain.jobs.pop(value)
            backlog.change(due, -left, -1)
        for due in (*asked, *(job[0] for job in plain.jobs)):
            assert backlog.ahead(due) == pytest.approx(plain.ahead(due), rel=1e-9, abs=1e-9)
        assert backlog.total() == pytest.approx(plain.ahead(1e9), rel=1e-9, abs=1e-9)
    for due, left in plain.jobs:
        backlog.change(due, -left, -1)
    assert backlog.total() == (0.0, 0)
    assert (len(backlog._fine), len(backlog._wide)) == (0, 0)


def test_later_parts_of_a_second_are_not_ahead() -> None:
    backlog = Backlog()
    for due in (9.9, 10.0, 10.1, 10.2, 10.3):
        backlog.change(due, 1.0, 1)
    assert [backlog.ahead(due)[1] for due in (9.8, 9.9, 10.0, 10.12, 10.13, 10.3, 1e6)] == [0, 1, 3, 3, 4, 5, 5]


def test_no_sum_is_negative_though_more_is_spent_than_there_was() -> None:
    backlog = Backlog()
    backlog.change(5.0, 1.0, 1)
    backlog.spend([(5.0, 1.5)])
    assert (backlog.ahead(5.0), backlog.total()) == ((0.0, 1), (0.0, 1))
    backlog.change(5.0, 0.0, -1)
    assert backlog.total() == (0.0, 0)
    backlog.change(5.0, 2.0, 1)
    assert backlog.total() == (2.0, 1), "nothing is owed for the one before"


def test_work_without_jobs_leaves_nothing_behind() -> None:
    backlog = Backlog()
    backlog.spend([(5.0, 1.5), (7000.0, 0.1)])
    backlog.change(5.0, -1.0, -1)
    assert (len(backlog._fine), len(backlog._wide)) == (0, 0)


@pytest.mark.parametrize("jobs", [10, 10_000])
def test_a_query_looks_at_seconds_and_not_at_jobs(jobs: int) -> None:
    backlog = Backlog()
    for number in range(jobs):
        backlog.change(100 + 60 * number / jobs, 0.01, 1)
    assert len(backlog._fine) <= 60 * FINE_PER_SECOND
    assert len(backlog._wide) <= 60 * FINE_PER_SECOND / FINE_PER_WIDE + 2
    assert backlog.ahead(130.0)[1] == pytest.approx(jobs / 2, rel=0.02, abs=1)


class Interruptible(float):
    """A number at whose additions other threads take over."""

    def __radd__(self, other: float) -> float:
        return other + float(self)

    def __neg__(self) -> Interruptible:
        return Interruptible(-float(self))


def test_threads_that_change_it_at_once_lose_nothing() -> None:
    backlog, start = Backlog(), threading.Barrier(5)
    seen: list[tuple[float, int]] = []
    kept = (10.0, 17.0, 25.0)
    for due in kept:
        # In each wide bin, which would begin anew if it were empty at times.
        backlog.change(due, 1.0, 1)

    def work(thread: int) -> None:
        start.wait()
        for number in range(400):
            due = 10.0 + (number * 7 + thread) % 50 / 3
            backlog.change(due, Interruptible(0.5), 1)
            backlog.spend([(due, Interruptible(0.25)), (due, Interruptible(0.125))])
            backlog.change(due, Interruptible(-0.125), -1)
        backlog.change(11.0 + thread, 0.25, 1)

    def ask() -> None:
        start.wait()
        for _ in range(400):
            seen.extend((backlog.total(), backlog.ahead(20.0)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)] + [threading.Thread(target=ask)]
    with restless_threads():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(0 <= seconds <= 0.5 * 4 + 4 and 0 <= jobs <= 11 for seconds, jobs in seen)
    assert backlog.total() == (4.0, 7)
    for number in range(4):
        backlog.change(11.0 + number, -0.25, -1)
    for due in kept:
        backlog.change(due, -1.0, -1)
    assert (len(backlog._fine), len(backlog._wide)) == (0, 0)
