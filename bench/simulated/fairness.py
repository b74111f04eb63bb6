"""What a short job waits for when the device is full of long ones, on the fake accelerator."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from bench.simulated.accelerator import GUIDED_ROWS, FakeAccelerator
from bench.simulated.in_flight import InFlight
from bench.simulated.load import make_job
from bench.simulated.simulation import Ledger, Settings
from bench.simulated.virtual_time import VirtualClock
from server.job import Job
from server.rows import Array

LONG, SHORT = 50, 10
SHORT_JOBS = 50


class ClosedLoop:
    """Clients that each send a long job, and the next one when it has ended, in front of the server's loop.

    Args:
        settings: of the device.
        clients: how many; their jobs start spread over the time of one.
    """

    def __init__(self, settings: Settings, clients: int) -> None:
        self.clock = VirtualClock()
        self.device = FakeAccelerator(settings.curve, self.clock, settings.shape)
        self._ledger = Ledger(settings.curve)
        self._server = InFlight(self.device, settings.max_rows, self.clock, self._finished)
        self._sent = 0
        for client in range(clients):
            self._send(f"long {client}")
            for _ in range(max(1, LONG // clients)):
                self._server.turn()

    def _send(self, client: str, steps: int = LONG) -> Job:
        self._sent += 1
        job = make_job(steps, "euler", self._sent, self.clock(), client)
        self._server.submit(job)
        return job

    def _finished(self, job: Job, latent: Array, seconds: float) -> None:
        self._ledger.finished(job, latent, seconds)
        if job.calls == LONG:
            self._send(job.request.client_id)

    def wait(self, seconds: float) -> None:
        """Go on for so long."""
        end = self.clock() + seconds
        while self.clock() < end:
            self._server.turn()

    def stretch(self) -> float:
        """Latency of a short job that comes now, over its latency alone."""
        job = self._send("short", SHORT)
        while job not in self._ledger.stretches:
            self._server.turn()
        return self._ledger.stretches[job]

    def close(self) -> None:
        self._server.close()


def fairness(settings: Settings, short_jobs: int = SHORT_JOBS) -> dict[str, Any]:
    """Latency of a short job over its latency alone, when long jobs just fill a call, and when as many more wait."""
    fitting = settings.max_rows // GUIDED_ROWS
    found = {"full": _stretches(settings, fitting, short_jobs), "queued": _stretches(settings, 2 * fitting, short_jobs)}
    return {**found, "long_steps": LONG, "short_steps": SHORT, "short_jobs": short_jobs}


def _stretches(settings: Settings, clients: int, short_jobs: int) -> dict[str, float]:
    generator = np.random.default_rng(0)
    longest = LONG * settings.curve.seconds(settings.max_rows)
    loop = ClosedLoop(settings, clients)
    try:
        stretches = []
        for _ in range(short_jobs):
            loop.wait(longest * generator.random())
            stretches.append(loop.stretch())
    finally:
        loop.close()
    return {
        "clients": clients,
        "median": statistics.median(stretches),
        "worst": max(stretches),
        "rows_per_call": loop.device.rows / loop.device.calls,
        "idle_share": 1 - loop.device.busy_seconds / loop.clock(),
    }
