"""What a server says of itself while it is loaded: its metrics, read again and again."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bench.reporting.measures import Plot
from bench.traffic.scrape import Samples, bucket_rises, read_metrics, total
from server.errors import ServerError

Line = list[tuple[float, float]]


@dataclass(slots=True)
class Watched:
    """Readings of a server's metrics.

    Attributes:
        readings: with the time of the monotonic clock of each.
        problem: why there are none, or no more.
    """

    readings: list[tuple[float, Samples]] = field(default_factory=list)
    problem: str | None = None

    def gauges(self, name: str, begun: float) -> Line:
        """A metric that goes up and down, over the seconds since `begun`."""
        return [(round(at - begun, 3), total(samples, name)) for at, samples in self.readings]

    def rates(self, name: str, begun: float) -> Line:
        """By how much a counter grows in a second."""
        return [
            (round(before[0] - begun, 3), (total(after[1], name) - total(before[1], name)) / (after[0] - before[0]))
            for before, after in zip(self.readings, self.readings[1:], strict=False)
        ]

    def rows_per_call(self, begun: float) -> dict[str, Line]:
        """Rows of the UNet calls between two readings, where there were calls.

        Their mean, and the buckets of the server's histogram that its smallest and its largest call fell in: more rows
        than `above`, and at most `up to`.
        """
        lines: dict[str, Line] = {"mean": [], "above": [], "up to": []}
        for (start, before), (_, after) in zip(self.readings, self.readings[1:], strict=False):
            calls = _rise(before, after, "rows_per_call", "_count")
            if not calls:
                continue
            at = round(start - begun, 3)
            lines["mean"].append((at, _rise(before, after, "rows_per_call", "_sum") / calls))
            if rises := bucket_rises(before, after, "rows_per_call"):
                lines["above"].append((at, max((rows for rows, rise in rises if not rise), default=0.0)))
                lines["up to"].append((at, min((rows for rows, rise in rises if rise >= calls), default=math.inf)))
        return {name: line for name, line in lines.items() if line}

    def plots(self, label: str, begun: float) -> list[Plot]:
        """Timelines of a load; none where nothing was read."""
        if len(self.readings) < 2:
            return []
        jobs = {name: self.gauges(name, begun) for name in ("waiting", "running")}
        answers = {"requests": self.rates("requests_total", begun), "images": self.rates("images_total", begun)}
        rows, meaning = self.rows_per_call(begun), "rows, of the calls between two readings"
        return [
            Plot(f"Rows per UNet call, by the server, at {label}", "timeline", "seconds", meaning, rows),
            Plot(f"Jobs in the server at {label}", "timeline", "seconds", "jobs", jobs),
            Plot(f"Answered by the server at {label}", "timeline", "seconds", "per second", answers),
        ]


def _rise(before: Samples, after: Samples, name: str, suffix: str) -> float:
    return total(after, name, suffix) - total(before, name, suffix)


@contextlib.asynccontextmanager
async def watching(url: str | None, every: float) -> AsyncIterator[Watched]:
    """Read the metrics at an address before the block, during it and after it.

    A server that does not let them be read is no error. After a block that raises nothing is read.
    """
    watched = Watched()
    if url is None:
        watched.problem = "the server's metrics were not read: their address is not known; give --metrics-url"
        yield watched
        return
    watched.problem = await _read(watched, url)
    task = asyncio.create_task(_watch(watched, url, every))
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.wait({task})
    if watched.problem is None:
        watched.problem = await _read(watched, url)


async def _watch(watched: Watched, url: str, every: float) -> None:
    while watched.problem is None:
        await asyncio.sleep(every)
        watched.problem = await _read(watched, url)


async def _read(watched: Watched, url: str) -> str | None:
    try:
        samples = await asyncio.to_thread(read_metrics, url)
    except (ServerError, ValueError) as error:
        return f"the server's metrics were not read: {error}"
    watched.readings.append((time.monotonic(), samples))
    return None
