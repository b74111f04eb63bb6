"""Several servers behind a balancer, each with a clock of its own, in one virtual time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bench.simulated.accelerator import Curve, FakeAccelerator
from bench.simulated.batchers import BATCHERS
from bench.simulated.load import Load
from bench.simulated.virtual_time import VirtualClock
from server.errors import ServerError
from server.job import Job
from server.rows import Array

Balancer: TypeAlias = Literal["random", "round_robin", "least_outstanding"]
# Side of the latents, which nobody looks at.
SIDE = 2
# Of the requests: so many at the beginning do not count.
WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class Costs:
    """What a server is like.

    Attributes:
        curve: of its UNet calls.
        max_rows: of one.
        encode_seconds, decode_seconds: of the device, for the prompts and for the latent of every image.
        request_seconds: of a request that passes outside the device: network, reading, image file.
    """

    curve: Curve
    max_rows: int = 16
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    request_seconds: float = 0.0

    def alone(self, calls: int, rows: int) -> float:
        """Seconds of a request that has a server to itself."""
        return self.curve.alone(calls, rows) + self.encode_seconds + self.decode_seconds + self.request_seconds


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a load.

    Attributes:
        latencies: seconds of the requests that count, in order of arrival.
        alone: what each would take by itself.
        busy: share of the time, of all servers.
        rows_per_call: mean.
    """

    latencies: tuple[float, ...]
    alone: tuple[float, ...]
    busy: float
    rows_per_call: float


class _Server:
    """One of them.

    Args:
        ended: is handed each job with the time at which its client has the image.
    """

    def __init__(self, batcher: str, costs: Costs, ended: Callable[[Job, float], None]) -> None:
        # The host's seconds are not counted: they would be this machine's.
        self.clock = VirtualClock(lambda: 0.0)
        self.device = FakeAccelerator(costs.curve, self.clock, (4, SIDE, SIDE))
        self._batcher = BATCHERS[batcher](self.device, costs.max_rows, self.clock, self._finished)
        self._costs = costs
        self._ended = ended
        self._outstanding = 0
        self._ends: deque[float] = deque()

    def advance(self, moment: float) -> None:
        """Go on until the call that is being made then."""
        while self.clock() < moment:
            if not self._batcher.turn():
                self.clock.skip_to(moment)

    def drain(self) -> None:
        while self._batcher.turn():
            pass

    def submit(self, job: Job) -> None:
        self._outstanding += 1
        self.device.work(self._costs.encode_seconds)
        self._batcher.submit(job)

    def outstanding(self, moment: float) -> int:
        """Requests that are not answered by then."""
        while self._ends and self._ends[0] <= moment:
            self._ends.popleft()
            self._outstanding -= 1
        return self._outstanding

    def close(self) -> None:
        self._batcher.close()

    def _finished(self, job: Job, latent: Array, seconds: float) -> None:
        # One after the other, before the next call: nothing is assumed to overlap on a device.
        self.device.work(self._costs.decode_seconds)
        end = self.clock() + self._costs.request_seconds
        self._ends.append(end)
        self._ended(job, end)


def _chooser(balancer: Balancer, servers: Sequence[_Server]) -> Callable[[float], _Server]:
    """Gives the server for a request that comes at a moment."""
    draw = random.Random(len(servers))
    turns = 0

    def in_turn(moment: float) -> _Server:
        nonlocal turns
        turns += 1
        return servers[turns % len(servers)]

    def least(moment: float) -> _Server:
        # In turn among equals, so that the first ones are not the only ones that an idle fleet uses.
        nonlocal turns
        turns += 1
        order = (*servers[turns % len(servers) :], *servers[: turns % len(servers)])
        return min(order, key=lambda server: server.outstanding(moment))

    choosers: Mapping[Balancer, Callable[[float], _Server]] = {
        "random": lambda moment: draw.choice(servers),
        "round_robin": in_turn,
        "least_outstanding": least,
    }
    return choosers[balancer]


def serve(batcher: str, costs: Costs, load: Load, rate: float, servers: int, balancer: Balancer) -> Served:
    """Serve a load at so many requests a second with so many servers, each with one of `BATCHERS`.

    Raises:
        ServerError: not every job has ended once.
    """
    jobs = load.jobs(rate)
    ends: dict[Job, float] = {}

    def ended(job: Job, seconds: float) -> None:
        if job in ends:
            raise ServerError("a job has ended twice")
        ends[job] = seconds

    fleet = [_Server(batcher, costs, ended) for _ in range(servers)]
    choose = _chooser(balancer, fleet)
    try:
        for job in jobs:
            for server in fleet:
                server.advance(job.arrival)
            choose(job.arrival).submit(job)
        arrived = max(server.clock() for server in fleet)
        busy = sum(server.device.busy_seconds for server in fleet) / (servers * arrived)
        for server in fleet:
            server.drain()
    finally:
        for server in fleet:
            server.close()
    if len(ends) < len(jobs):
        raise ServerError(f"{batcher} lost {len(jobs) - len(ends)} of {len(jobs)} jobs")
    counted = jobs[int(WARM_UP * len(jobs)) :]
    return Served(
        tuple(ends[job] - job.arrival for job in counted),
        tuple(costs.alone(job.calls, job.reserved) for job in counted),
        min(1.0, busy),
        sum(server.device.rows for server in fleet) / max(1, sum(server.device.calls for server in fleet)),
    )
