"""The real scheduler and the real admission in front of a device that only takes time, and that is skipped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from server.admission import Admission, Cost
from server.config import ServerConfig
from server.job import Batch, Job, Plot
from server.request import Request
from server.scheduler import Scheduler
from server.step_curve import StepCurve
from tests.fakes import idle_table, make_job

NO_LIMIT = 2**62
# An H100 in the model of bench/simulated/accelerator.py.
ROW_SECONDS, FIXED_ROWS = 0.00146, 5.9


def device(rows: int) -> float:
    """Seconds of a call."""
    return ROW_SECONDS * (rows + FIXED_ROWS)


class Arrival(NamedTuple):
    """A request for one image of so many calls, and when it comes."""

    at: float
    calls: int
    fields: dict[str, Any]


class VirtualServer:
    """Makes call after call; time passes in calls only.

    Args:
        max_rows: rows of one call.
        seconds: what a call takes, by rows.
        config: bounds of the queue.

    Attributes:
        now: seconds.
        ended: when each job was finished.
        calls: the jobs and the rows of each.
    """

    def __init__(
        self, max_rows: int = 16, seconds: Callable[[int], float] = device, config: ServerConfig | None = None
    ) -> None:
        unlimited = ServerConfig(Path(), max_rows=max_rows, queue_limit=NO_LIMIT, queue_bytes=NO_LIMIT)
        self.now = 1000.0
        self.curve = StepCurve([(rows, seconds(rows)) for rows in range(1, max_rows + 1)])
        self.scheduler = Scheduler(max_rows, lambda bucket: self.curve)
        self.admission = Admission(config or unlimited, lambda plot: self.curve, lambda: self._moment)
        self.ended: dict[Job, float] = {}
        self.calls: list[tuple[tuple[Job, ...], int]] = []
        self._moment = self.now
        self._costs: dict[Job, Cost] = {}

    def cost(self, request: Request, calls: int) -> Cost:
        plot = Plot(request.model, request.height, request.width)
        return self.admission.cost(request, [(plot, calls, 2 if request.guided else 1)])

    def submit(self, calls: int, at: float | None = None, **fields: Any) -> Job:
        """Let a request for one image in, now or at a moment in the call that was made last.

        Raises:
            Overloaded: it is refused.
        """
        self._moment = self.now if at is None else at
        job = make_job(idle_table(calls), self._moment, **fields)
        cost = self._costs[job] = self.cost(job.request, calls)
        (job.due,) = self.admission.enter(job.request, cost)
        job.seconds = cost.seconds / calls
        self.scheduler.add(job)
        return job

    def turn(self) -> Batch | None:
        """One call."""
        batch = self.scheduler.schedule(self.now)
        if batch is None:
            return None
        for job in batch.joined:
            job.slot = 0
        self.now += self.curve.seconds(batch.size)
        self.calls.append((batch.jobs, batch.size))
        self.admission.backlog.spend([(job.due, job.seconds) for job in batch.jobs])
        for job in self.scheduler.update(batch.jobs):
            self.ended[job] = self.now
            self.admission.backlog.change(job.due, -(job.calls - job.step_index) * job.seconds, -1)
            self.admission.leave(job.request, self._costs.pop(job))
        return batch

    def run(self, until: float = float("inf")) -> None:
        """Make calls while there are any to make, and until a moment has come."""
        while self.now < until and self.turn() is not None:
            continue

    def serve(self, arrivals: Iterable[Arrival]) -> list[Job]:
        """All of these requests, in order of arrival; returns their jobs."""
        jobs = []
        for arrival in arrivals:
            self.run(until=arrival.at)
            self.now = max(self.now, arrival.at)
            jobs.append(self.submit(arrival.calls, arrival.at, **arrival.fields))
        self.run()
        return jobs

    def latency(self, job: Job) -> float:
        return self.ended[job] - job.arrival

    def stretch(self, job: Job) -> float:
        """Latency over latency alone."""
        return self.latency(job) / (job.calls * self.curve.seconds(job.reserved))


def poisson(rate: float, count: int, steps: Sequence[int], seed: int, start: float = 1000.0) -> list[Arrival]:
    """Requests of these numbers of calls, all as likely, each of a client of its own."""
    chance = random.Random(seed)
    at, found = start, []
    for number in range(count):
        at += chance.expovariate(rate)
        found.append(Arrival(at, chance.choice(steps), {"seed": number, "client_id": str(number)}))
    return found
