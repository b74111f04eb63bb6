"""One run of a batcher under a load, and the highest rate at which it serves in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.simulated.accelerator import DeviceCurve, FakeAccelerator
from bench.simulated.batchers import BATCHERS
from bench.simulated.load import Load
from bench.simulated.virtual_time import VirtualClock, drive
from bench.traffic.bisection import highest_passing
from bench.traffic.slo import ATTAINMENT
from server.errors import ServerError
from server.job import Job
from server.rows import Array

# Of the requests that count; so many more are sent before them.
WARM_UP = 0.1
# Rates that are tried: the device's peak, and `PLACES` lower ones, each by so much lower than the next.
GRID = 1.02
PLACES = 250


@dataclass(frozen=True, slots=True)
class Settings:
    """What all runs have in common.

    Attributes:
        curve: of the device.
        max_rows: rows of one UNet call.
        requests: that count.
        side: of a latent of 4 channels.
    """

    curve: DeviceCurve
    max_rows: int = 16
    requests: int = 1500
    side: int = 8

    @property
    def shape(self) -> tuple[int, int, int]:
        return 4, self.side, self.side

    @property
    def warm_up(self) -> int:
        """Requests that are sent first and do not count."""
        return int(WARM_UP * self.requests)

    def load(self, steps: Sequence[int], seed: int) -> Load:
        return Load.drawn(steps, self.warm_up + self.requests, seed)


@dataclass(slots=True)
class Ledger:
    """When jobs ended.

    Attributes:
        curve: of the device.
        since: jobs that came earlier do not count.
        allowed: jobs that count and may end late.
        hopeless: how many times its latency alone makes a job late.
        stretches: latency over latency alone, of the jobs that have ended.
        late: jobs that count and were late.
    """

    curve: DeviceCurve
    since: float = 0.0
    allowed: float = float("inf")
    hopeless: float = float("inf")
    stretches: dict[Job, float] = field(default_factory=dict)
    late: int = 0

    def finished(self, job: Job, latent: Array, seconds: float) -> None:
        """Take down a job once.

        Raises:
            ServerError: it has ended before.
        """
        if job in self.stretches:
            raise ServerError("a job has ended twice")
        self.stretches[job] = (seconds - job.arrival) / self.curve.alone(job.calls)
        self.late += job.arrival >= self.since and self.stretches[job] > self.hopeless

    def given_up(self) -> bool:
        """Whether more were late than may be, so that the rest of the run need not be made."""
        return self.late > self.allowed


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one load.

    Attributes:
        stretches: latency over latency alone of the jobs that count; infinite for one that had not ended.
        rows_per_call: mean.
        idle_share: of the time from the first arrival to the last end, in which the device did not compute.
        host_share: of the same time, what the host itself took; the device idles in it.
    """

    stretches: tuple[float, ...]
    rows_per_call: float
    idle_share: float
    host_share: float

    def attainment(self, k: float) -> float:
        """Share of the jobs that ended within `k` times their latency alone."""
        return sum(stretch <= k for stretch in self.stretches) / len(self.stretches)


def simulate(batcher: str, settings: Settings, load: Load, rate: float, hopeless: float = float("inf")) -> Run:
    """Serve a load at so many requests a second with one of `BATCHERS`.

    Args:
        hopeless: the run is given up when fewer than `ATTAINMENT` can end within so many times their latency alone.

    Raises:
        ServerError: not every job has ended.
    """
    jobs = load.jobs(rate)
    counted = jobs[settings.warm_up :]
    ledger = Ledger(settings.curve, counted[0].arrival, (1 - ATTAINMENT) * len(counted), hopeless)
    clock = VirtualClock()
    device = FakeAccelerator(settings.curve, clock, settings.shape)
    server = BATCHERS[batcher](device, settings.max_rows, clock, ledger.finished)
    try:
        drive(server, clock, jobs, ledger.given_up)
    finally:
        server.close()
    seconds = clock() - jobs[0].arrival
    if not ledger.given_up() and len(ledger.stretches) < len(jobs):
        raise ServerError(f"{batcher} lost {len(jobs) - len(ledger.stretches)} of {len(jobs)} jobs")
    return Run(
        tuple(ledger.stretches.get(job, float("inf")) for job in counted),
        rows_per_call=device.rows / device.calls,
        idle_share=1 - device.busy_seconds / seconds,
        host_share=(clock() - clock.skipped) / seconds,
    )


@dataclass(frozen=True, slots=True)
class Goodput:
    """What one batcher reached at one limit under one load: requests a second, and the run at that rate."""

    rate: float
    run: Run | None


def goodputs(
    batcher: str, settings: Settings, load: Load, peak: float, near: Mapping[float, float]
) -> dict[float, Goodput]:
    """Goodput at several limits; a run serves the ones that follow too.

    Args:
        batcher: one of `BATCHERS`.
        load: the same arrivals at every rate.
        peak: images a second that the device can make; no higher rate is tried.
        near: limits, the highest first, each with the rate at which to begin.
    """
    runs: dict[int, Run] = {}
    found = {}
    for k, guess in near.items():

        def passes(place: int, k: float = k) -> bool:
            if place not in runs:
                runs[place] = simulate(batcher, settings, load, _rate(place, peak), k)
            return runs[place].attainment(k) >= ATTAINMENT

        place = highest_passing(passes, PLACES + round(math.log(guess / peak, GRID)), PLACES)
        found[k] = Goodput(_rate(place, peak), runs[place]) if place >= 0 else Goodput(0.0, None)
    return found


def _rate(place: int, peak: float) -> float:
    return float(peak * GRID ** (place - PLACES))
