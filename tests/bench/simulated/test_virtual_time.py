"""Skipped seconds, the host's seconds, and arrivals on time."""

from __future__ import annotations

from collections import deque

import pytest

from bench.simulated.load import Load, make_job
from bench.simulated.virtual_time import VirtualClock, drive
from server.job import Job


class Host:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class OneSecondEach:
    """Serves one job a turn, in a second."""

    def __init__(self, clock: VirtualClock) -> None:
        self.waiting: deque[Job] = deque()
        self.begun: list[tuple[Job, float]] = []
        self._clock = clock

    def submit(self, job: Job) -> None:
        assert job.arrival <= self._clock()
        self.waiting.append(job)

    def turn(self) -> bool:
        if not self.waiting:
            return False
        self.begun.append((self.waiting.popleft(), self._clock()))
        self._clock.skip(1.0)
        return True

    def close(self) -> None:
        """Holds nothing."""


def job(arrival: float) -> Job:
    return make_job(4, "euler", 0, arrival, "somebody")


def test_a_clock_counts_what_is_skipped_and_what_passes() -> None:
    host = Host()
    clock = VirtualClock(host)
    assert clock() == 0.0
    clock.skip(2.5)
    host.now += 0.5
    assert clock() == pytest.approx(3.0)
    assert clock.skipped == 2.5


def test_skipping_to_a_moment_never_goes_back() -> None:
    clock = VirtualClock(Host())
    clock.skip_to(4.0)
    assert clock() == pytest.approx(4.0)
    clock.skip_to(3.0)
    assert clock() == pytest.approx(4.0)


def test_jobs_are_submitted_when_they_arrive_and_idle_time_is_skipped() -> None:
    clock = VirtualClock(Host())
    batcher = OneSecondEach(clock)
    jobs = [job(0.5), job(0.75), job(10.0)]
    drive(batcher, clock, jobs)
    assert batcher.begun == [(jobs[0], 0.5), (jobs[1], 1.5), (jobs[2], 10.0)]
    assert clock() == pytest.approx(11.0)


def test_driving_ends_when_it_is_enough() -> None:
    clock = VirtualClock(Host())
    batcher = OneSecondEach(clock)
    drive(batcher, clock, [job(0.0) for _ in range(5)], enough=lambda: len(batcher.begun) == 2)
    assert len(batcher.begun) == 2


def test_a_load_is_the_same_at_every_rate_but_for_its_pace() -> None:
    load = Load.drawn((4, 20, 50), 300, seed=3)
    slow, fast = load.jobs(1.0), load.jobs(4.0)
    assert [job.calls for job in slow] == [job.calls for job in fast]
    assert [job.arrival for job in slow] == pytest.approx([4 * job.arrival for job in fast])
    assert {job.calls for job in slow} == {4, 20, 50}
    assert slow[-1].arrival == pytest.approx(300, rel=0.2)
    assert len({job.request.client_id for job in slow}) == 300
    assert Load.drawn((4, 20, 50), 300, seed=3) == load != Load.drawn((4, 20, 50), 300, seed=4)
