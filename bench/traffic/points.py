"""Points of a sweep: one load each on the same server, and every figure of it."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.serving import Address, mean_rows
from bench.traffic import scrape, tally
from bench.traffic.alone import Alone
from bench.traffic.arrivals import Arrivals
from bench.traffic.asking import Outcome
from bench.traffic.bounds import bounds, in_time_of
from bench.traffic.latencies import milliseconds
from bench.traffic.mix import Asked, Mix
from bench.traffic.senders import Due, Share, send_load
from bench.traffic.timelines import Watched, watching
from server.errors import ServerError

# By which the server's metrics lag behind.
METRICS_SECONDS = 2.0
# Of sentences about requests that went wrong, so many are kept.
KEPT = 20
OPEN = "intended sending: each request has its time, and one that the client sends late counts from then"
CLOSED = (
    "sending: a client sends when its last request is answered, so a stall delays what would have come meanwhile "
    "instead of counting it (coordinated omission); take the percentiles as those of so many clients, not of a rate"
)


@dataclass(frozen=True, slots=True)
class Load:
    """How a mix is sent.

    Attributes:
        concurrency: requests open at a time; not with arrivals.
        arrivals: when they come.
        count, seconds: where the load ends; at least one of them.
        connections, processes: of the client.
        limit: seconds after which a request without an answer is lost.
        slo_ms: within which a request is in time, besides the multiples of its latency alone.
        reading: seconds between readings of the server's metrics.
    """

    concurrency: int | None = 16
    arrivals: Arrivals | None = None
    count: int | None = 200
    seconds: float | None = None
    connections: int = 4
    processes: int = 1
    limit: float = 120.0
    slo_ms: float | None = None
    reading: float = 1.0

    @property
    def label(self) -> str:
        return self.arrivals.label if self.arrivals else f"{self.concurrency} at a time"

    @property
    def offered(self) -> float:
        """What is asked for: requests a second, or at a time."""
        return self.arrivals.rate if self.arrivals else float(self.concurrency or 0)


@dataclass(slots=True)
class Point:
    """What became of a load.

    Attributes:
        begun: when it began, by the monotonic clock.
        unfinished: what was sent and had no outcome when the load ended, and when it was due.
        reason: why it ended early, if it did.
        counted: by how much the server's counters grew, where they can be read.
    """

    load: Load
    outcomes: list[Outcome]
    watched: Watched
    begun: float
    reason: str | None = None
    cpu_seconds: float = 0.0
    counted: Mapping[str, float] = field(default_factory=dict)
    unfinished: Sequence[Due] = ()

    @property
    def label(self) -> str:
        return self.load.label

    @property
    def offered(self) -> float:
        """What it is plotted over: requests a second as they were really due, or at a time."""
        due = [outcome.intended for outcome in self.outcomes] + [moment for _, moment in self.unfinished]
        seconds = max(due) - min(due) if due else 0.0
        if self.load.arrivals is None or not seconds:
            return self.load.offered
        return (len(due) - 1) / seconds


async def measure_point(address: Address, mix: Mix, load: Load) -> Point:
    """Send a load, and watch the server meanwhile.

    Raises:
        ServerError: the load has no request.
    """
    share = _share(address, mix, load)
    begun = time.monotonic()
    async with watching(address.metrics, load.reading) as watched:
        sent = await send_load(share, load.processes)
        # The server's last words come after the last answer.
        await asyncio.sleep(METRICS_SECONDS if watched.readings and not sent.reason else 0)
    begun = min((outcome.intended for outcome in sent.outcomes), default=begun)
    point = Point(load, sent.outcomes, watched, begun, sent.reason, sent.cpu_seconds, unfinished=sent.unfinished)
    if len(watched.readings) > 1:
        point.counted = scrape.grown(watched.readings[0][1], watched.readings[-1][1])
    return point


def _share(address: Address, mix: Mix, load: Load) -> Share:
    share = Share(address, mix, connections=load.connections, limit=load.limit)
    if load.arrivals is None:
        assert load.concurrency is not None
        return replace(share, concurrency=load.concurrency, count=load.count, seconds=load.seconds)
    times = load.arrivals.times(mix.seed, count=load.count, seconds=load.seconds)
    if not times:
        raise ServerError(f"no request comes in {load.seconds} s at {load.label}: give a longer --duration")
    return replace(share, times=tuple(times), given=load.arrivals.given())


def figures(point: Point, alone: Alone) -> dict[str, Any]:
    """Every figure of a load."""
    outcomes = point.outcomes

    def seconds_alone(asked: Asked) -> float:
        return alone.seconds(asked.kind)

    previews = [o.first_preview - o.intended for o in outcomes if o.first_preview is not None]
    rows = mean_rows([o.timing for o in outcomes if {"unet_calls", "unet_rows"} <= set(o.timing) and not o.cached])
    # Where a load ends early, what is open then is told by its number alone.
    expected = [o.asked for o in outcomes] + [asked for asked, _ in point.unfinished if not point.reason]
    wrong = tally.unaccounted(expected, outcomes, bounded=True)
    found: dict[str, Any] = {
        "load": point.label,
        "nominal": point.load.offered,
        "offered": round(point.offered, 4),
        "sent": len(outcomes) + len(point.unfinished),
        "unfinished": len(point.unfinished),
        "outcomes": dict(Counter(outcome.status for outcome in outcomes)),
        "answered_from_cache": sum(outcome.cached for outcome in outcomes),
        "images_per_second": round(tally.images_per_second(outcomes), 3),
        "requests_per_second": round(tally.requests_per_second(outcomes), 3),
        "goodput_images_per_second": tally.goodputs(outcomes, seconds_alone),
        "open_loop": point.load.arrivals is not None,
        "latency_counts_from": OPEN if point.load.arrivals else CLOSED,
        "latency_ms": tally.latencies(outcomes),
        "latency_ms_by_steps": tally.by_steps(outcomes),
        "latency_ms_by_task": tally.by_task(outcomes),
        "mean_rows_per_unet_call": None if rows is None else round(rows, 3),
        "first_preview_ms": milliseconds(previews),
        "late_sending_ms": milliseconds([outcome.sent - outcome.intended for outcome in outcomes]),
        "seconds": round(tally.span(outcomes), 3),
        "intervals": bounds(outcomes, seconds_alone, point.load.slo_ms),
        "client": _client(point),
        "failures_by_words": tally.messages(outcomes),
        "failed": len(wrong),
        "unaccounted": wrong[:KEPT],
        "stopped": point.reason,
    }
    if point.load.slo_ms is not None:
        found["slo"] = _slo(outcomes, point.load.slo_ms)
    if point.counted:
        found["server_counted"] = dict(point.counted)
    if point.watched.problem:
        found["server_not_read"] = point.watched.problem
    return found


def _slo(outcomes: Sequence[Outcome], slo_ms: float) -> dict[str, float]:
    """What was served within an absolute limit, of all that was sent and not left by its own client."""

    def limit(asked: Asked) -> float:
        return slo_ms / 1e3

    in_time = in_time_of(outcomes, slo_ms)
    served = round(tally.goodput(outcomes, limit), 3)
    return {"ms": slo_ms, "images_per_second": served, "share": round(sum(in_time) / max(1, len(in_time)), 5)}


def _client(point: Point) -> dict[str, float]:
    """What the load cost its sender; the memory is the most of this process, or of one of the sending ones."""
    who = resource.RUSAGE_CHILDREN if point.load.processes > 1 else resource.RUSAGE_SELF
    return {
        "open_at_most": tally.open_at_most(point.outcomes),
        "cpu_seconds": round(point.cpu_seconds, 3),
        "peak_mib": round(resource.getrusage(who).ru_maxrss / 1024, 1),
    }


def failures(points: Sequence[Point], reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went wrong, in sentences."""
    found = [f"{point.label}: {point.reason}" for point in points if point.reason]
    for report in reports:
        if report["unfinished"]:
            found.append(
                f"{report['load']}: {report['unfinished']} of {report['sent']} requests had no outcome when the load "
                "ended, and count in none of its latencies"
            )
        if report["answered_from_cache"]:
            found.append(
                f"{report['load']}: {report['answered_from_cache']} answers came from the server's response cache, "
                "which says nothing of how quickly it draws: start it without --response-cache-mb"
            )
        found += [f"{report['load']}: {sentence}" for sentence in report["unaccounted"]]
        found += [f"{report['load']}: and {report['failed'] - KEPT} more"] if report["failed"] > KEPT else []
    return found
