"""The loop and both baselines: who shares a call with whom, in which order, and that all draw the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench.simulated.accelerator import DeviceCurve, FakeAccelerator
from bench.simulated.batchers import BATCHERS
from bench.simulated.load import Load, make_job
from bench.simulated.virtual_time import VirtualClock, drive
from server.job import Job
from server.rows import Array

CURVE = DeviceCurve(fixed_seconds=1.0, row_seconds=0.25)
MAX_ROWS = 8


class ShowingAccelerator(FakeAccelerator):
    """Keeps how many rows and which timesteps each call had."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(CURVE, clock, (4, 4, 4))
        self.sizes: list[int] = []
        self.timesteps: list[set[float]] = []

    def denoise(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        self.sizes.append(len(feeds["sample"]))
        self.timesteps.append(set(feeds["timestep"].tolist()))
        return super().denoise(feeds)


class Served:
    """Jobs served by one of `BATCHERS`."""

    def __init__(self, batcher: str, jobs: list[Job], max_rows: int = MAX_ROWS) -> None:
        clock = VirtualClock()
        self.device = ShowingAccelerator(clock)
        self.order: list[Job] = []
        self.latents: dict[Job, Array] = {}
        self.seconds: dict[Job, float] = {}
        server = BATCHERS[batcher](self.device, max_rows, clock, self._finished)
        drive(server, clock, jobs)
        server.close()

    def _finished(self, job: Job, latent: Array, seconds: float) -> None:
        self.order.append(job)
        self.latents[job] = latent
        self.seconds[job] = seconds


def euler_jobs(*steps: int, apart: float = 0.01) -> list[Job]:
    """Jobs of so many steps that come one shortly after the other."""
    return [make_job(count, "euler", i, i * apart, str(i)) for i, count in enumerate(steps)]


@pytest.mark.parametrize("batcher", BATCHERS)
def test_every_job_ends_once_and_not_too_soon(batcher: str) -> None:
    jobs = Load.drawn((4, 20), 60, seed=1).jobs(0.2)
    served = Served(batcher, jobs)
    assert len(served.order) == len(jobs)
    assert set(served.order) == set(jobs)
    # The host's own time is not negative, so nothing is quicker than alone.
    assert all(served.seconds[job] - job.arrival >= CURVE.alone(job.calls) for job in jobs)
    assert served.device.rows == sum(served.device.sizes) == sum(2 * job.calls for job in jobs)
    assert max(served.device.sizes) <= MAX_ROWS


def test_all_draw_the_same_latents() -> None:
    load = Load.drawn((4, 20), 30, seed=2)
    latents = []
    for batcher in BATCHERS:
        jobs = load.jobs(0.3)
        served = Served(batcher, jobs)
        latents.append([served.latents[job] for job in jobs])
    for ours, *theirs in zip(*latents, strict=True):
        assert np.isfinite(ours).all()
        assert all(np.array_equal(ours, other) for other in theirs)


def test_the_loop_mixes_steps() -> None:
    served = Served("in_flight", euler_jobs(4, 20, 20, 4))
    assert max(len(timesteps) for timesteps in served.device.timesteps) > 1


def test_static_batches_never_mix_steps() -> None:
    steps = np.random.default_rng(0).choice([4, 5, 20], 40).tolist()
    served = Served("static", euler_jobs(*steps))
    assert all(len(timesteps) == 1 for timesteps in served.device.timesteps)
    assert max(served.device.sizes) == MAX_ROWS


def test_static_batches_begin_with_the_oldest_and_are_filled_up_to_the_limit() -> None:
    jobs = euler_jobs(20, 4, 20, 20, 4, 20)
    served = Served("static", jobs, max_rows=4)
    assert [jobs.index(job) for job in served.order] == [0, 1, 4, 2, 3, 5]
    sizes = served.device.sizes
    assert sizes == [2] * 20 + [4] * 4 + [4] * 20 + [2] * 20


def test_serial_keeps_the_order_of_arrival_one_image_a_call() -> None:
    jobs = euler_jobs(20, 4, 5, 4, 20)
    served = Served("serial", jobs)
    assert served.order == jobs
    assert set(served.device.sizes) == {2}
