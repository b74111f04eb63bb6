"""Time in which a device's seconds are skipped while the host's own seconds count."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from server.job import Job


class VirtualClock:
    """Seconds since it was made: those that the host worked, and those that were skipped.

    Args:
        host: seconds that pass; of this process's work by default, so that other programs on the machine do not count.
    """

    def __init__(self, host: Callable[[], float] = time.process_time) -> None:
        self._host = host
        self._origin = host()
        self.skipped = 0.0

    def __call__(self) -> float:
        return self._host() - self._origin + self.skipped

    def skip(self, seconds: float) -> None:
        """Move on by so much."""
        self.skipped += seconds

    def skip_to(self, moment: float) -> None:
        """Move on to a moment, unless it has passed."""
        self.skipped += max(0.0, moment - self())


class Batcher(Protocol):
    """What serves jobs on the device, turn by turn."""

    def submit(self, job: Job) -> None:
        """Let a job wait."""

    def turn(self) -> bool:
        """Do what must be done before new jobs are looked at; False when there is nothing to do."""

    def close(self) -> None:
        """Free what it holds."""


def never() -> bool:
    return False


def drive(batcher: Batcher, clock: VirtualClock, jobs: Iterable[Job], enough: Callable[[], bool] = never) -> None:
    """Serve jobs, in order of arrival, each submitted when its arrival has come; ends early once it is `enough`."""
    coming = deque(jobs)
    while not enough():
        now = clock()
        while coming and coming[0].arrival <= now:
            batcher.submit(coming.popleft())
        if batcher.turn():
            continue
        if not coming:
            return
        clock.skip_to(coming[0].arrival)
