"""How much work lies ahead of a job: what predictions of finish times rest on."""

from __future__ import annotations

import threading
from collections import defaultdict

# Jobs due within the same part of a second are not told apart; wide bins are for quick sums over long queues.
FINE_PER_SECOND = 8
FINE_PER_WIDE = 64


class Backlog:
    """Sums of open work by when it is due; any thread may use it.

    Queries are O(seconds of work open), not O(jobs): 10,000 jobs or 10, they fall into the same bins.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fine: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0])
        self._wide: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0])

    def change(self, due: float, seconds: float, jobs: int = 0) -> None:
        """Add work and jobs that are due then, or with negative numbers take them away."""
        with self._lock:
            self._change(due, seconds, jobs)

    def spend(self, parts: list[tuple[float, float]]) -> None:
        """Take away what a call has done: (due, seconds) of each of its jobs."""
        with self._lock:
            for due, seconds in parts:
                self._change(due, -seconds, 0)

    def _change(self, due: float, seconds: float, jobs: int) -> None:
        fine = int(due * FINE_PER_SECOND)
        for bins, key in ((self._fine, fine), (self._wide, fine // FINE_PER_WIDE)):
            entry = bins[key]
            entry[0] += seconds
            entry[1] += jobs
            # Work is only rounding errors where no jobs are left.
            if jobs <= 0 and entry[1] <= 0:
                del bins[key]

    def ahead(self, due: float) -> tuple[float, int]:
        """(seconds of the whole server, jobs) that are due no later."""
        last = int(due * FINE_PER_SECOND)
        wide = last // FINE_PER_WIDE
        with self._lock:
            parts = [entry for key, entry in self._wide.items() if key < wide]
            parts += [self._fine[key] for key in range(wide * FINE_PER_WIDE, last + 1) if key in self._fine]
            return max(0.0, sum(part[0] for part in parts)), int(sum(part[1] for part in parts))

    def total(self) -> tuple[float, int]:
        """(seconds of the whole server, jobs) open."""
        with self._lock:
            return max(0.0, sum(e[0] for e in self._wide.values())), int(sum(e[1] for e in self._wide.values()))
