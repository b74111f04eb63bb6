"""What a server holds, sampled while it is idle, and whether that grows with the requests it has served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.traffic.latencies import slope
from server.process_group import PROC

MIB = 1 << 20
# The first samples after a start, of which allocators, pools and caches still grow.
WARM_UP_SHARE = 0.3
# What an idle server may hold more of at the end than when it was warm: pools that vary, and fragments of its heap.
ALLOWED = {"fds": 8.0, "threads": 8.0, "mib": 24.0, "regions": 0.0}


@dataclass(frozen=True, slots=True)
class Sample:
    """Of an idle server.

    Attributes:
        start: which start of the server it belongs to.
        requests: sent until then, since the beginning.
        held: by name, the last word of which is the unit: `mib`, `fds`, `threads`, `regions`, `jobs`.
    """

    start: int
    requests: int
    held: Mapping[str, float]


def process_holds(name: str, pid: int) -> dict[str, float]:
    """Memory of its own (without shared memory and files), all resident memory, files and threads of a process."""
    folder = PROC / str(pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    kilobytes = {key: int(status[key].split()[0]) for key in ("VmRSS", "RssAnon")}
    return {
        f"{name} own mib": kilobytes["RssAnon"] / 1024,
        f"{name} resident mib": kilobytes["VmRSS"] / 1024,
        f"{name} fds": len(list((folder / "fd").iterdir())),
        f"{name} threads": int(status["Threads"]),
    }


def memory_holds(regions: Sequence[Path]) -> dict[str, float]:
    """Shared memory: how much of it has been touched, and in how many regions."""
    return {"shared mib": sum(path.stat().st_blocks * 512 for path in regions) / MIB, "shared regions": len(regions)}


def of_last_start(samples: Sequence[Sample]) -> list[Sample]:
    """The samples of the server that ran last, once it was warm."""
    last = [sample for sample in samples if sample.start == samples[-1].start] if samples else []
    return last[int(WARM_UP_SHARE * len(last)) :]


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """First and last value of everything that is held, and how much more it is for each 1,000 requests."""
    found: dict[str, Any] = {}
    for name in samples[0].held if samples else ():
        points = [(sample.requests / 1000, sample.held[name]) for sample in samples]
        values = [value for _, value in points]
        found[name] = {
            "first": round(values[0], 2),
            "last": round(values[-1], 2),
            "most": round(max(values), 2),
            "per_1000_requests": round(slope(points), 3),
        }
    return found


def leaks(grown: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A sentence for everything that has grown by more than it may; resident memory is only reported."""
    found = []
    for name, figures in grown.items():
        allowed = ALLOWED.get(name.split()[-1])
        if allowed is None or "resident" in name:
            continue
        if figures["last"] - figures["first"] > allowed:
            found.append(f"{name} grew from {figures['first']:g} to {figures['last']:g}; {allowed:g} more are allowed")
    return found
