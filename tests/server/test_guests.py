"""server.scheduler over time, on a clock that is skipped: short jobs among long ones, and long jobs by themselves."""

from __future__ import annotations

import random

import pytest

from server.job import Job
from tests.virtual_server import VirtualServer, device, poisson

LONG, SHORT = 50, 10


class Crowd:
    """Clients that each send a long job, and the next one when it has ended."""

    def __init__(self, clients: int, seed: int) -> None:
        self.server = VirtualServer()
        self.chance = random.Random(seed)
        for number in range(clients):
            self.send(f"client {number}")
            for _ in range(LONG // clients):
                self.turn()

    def send(self, client: str) -> None:
        self.server.submit(LONG, client_id=client)

    def turn(self) -> None:
        batch = self.server.turn()
        assert batch is not None
        for job in batch.jobs:
            if job in self.server.ended and job.calls == LONG:
                self.send(job.request.client_id)

    def guest(self, calls: int = SHORT) -> Job:
        """A short job that came at any moment of a call, served to its end."""
        for _ in range(self.chance.randrange(80)):
            self.turn()
        before = self.server.now
        self.turn()
        job = self.server.submit(calls, at=self.chance.uniform(before, self.server.now), client_id="guest")
        while job not in self.server.ended:
            self.turn()
        return job


@pytest.mark.parametrize("clients", [4, 7, 8])
def test_a_short_job_among_long_ones_that_fill_a_call_ends_within_one_and_a_half_times_its_time_alone(
    clients: int,
) -> None:
    crowd = Crowd(clients, seed=clients)
    assert max(crowd.server.stretch(crowd.guest()) for _ in range(25)) <= 1.5


def test_long_jobs_hardly_notice_a_guest() -> None:
    """One that comes in the time of every long job takes at most its own time alone from them."""
    crowd = Crowd(7, seed=1)
    for _ in range(400):
        crowd.turn()
    undisturbed = [crowd.server.latency(job) for job in crowd.server.ended][-10:]
    for _ in range(25):
        crowd.guest()
    disturbed = [crowd.server.latency(job) for job in crowd.server.ended if job.calls == LONG][-30:]
    visits = 1 + max(disturbed) / (40 * device(14))
    assert max(disturbed) <= max(undisturbed) + visits * 1.5 * SHORT * device(2)


def test_equal_jobs_fill_their_calls() -> None:
    server = VirtualServer()
    jobs = [server.submit(SHORT, client_id=str(number)) for number in range(21)]
    server.run()
    assert [rows for _, rows in server.calls] == [14] * (3 * SHORT)
    assert [server.ended[job] for job in jobs] == sorted(server.ended.values())


@pytest.mark.parametrize("calls", [LONG // 4 + 1, 20, 40])
def test_a_job_that_is_not_much_shorter_than_the_others_is_no_guest(calls: int) -> None:
    crowd = Crowd(7, seed=3)
    before = len(crowd.server.calls)
    for _ in range(3):
        crowd.guest(calls)
    assert all(rows >= 12 for _, rows in crowd.server.calls[before:])


def test_an_overloaded_server_does_not_make_small_calls_for_guests_that_are_late_anyway() -> None:
    """At 1.3 times what it can do, of jobs of 4, 20 and 50 calls; each call could be full."""
    capacity = 7 / device(14) / ((4 + 20 + 50) / 3)
    server = VirtualServer()
    server.serve(poisson(1.3 * capacity, 250, (4, 20, 50), seed=5))
    rows = [rows for _, rows in server.calls]
    busy = rows[len(rows) // 5 : -len(rows) // 5]
    assert sum(busy) / len(busy) >= 0.9 * 14


def test_nobody_is_forgotten_under_a_mixed_load() -> None:
    capacity = 7 / device(14) / ((4 + 20 + 50) / 3)
    server = VirtualServer()
    jobs = server.serve(poisson(0.8 * capacity, 300, (4, 20, 50), seed=6))
    assert set(server.ended) == set(jobs)
    assert max(server.stretch(job) for job in jobs) <= 8
    assert server.admission.backlog.total() == (0.0, 0)
