"""Loads: so many requests at a time (closed), or at random times whatever becomes of those before (open)."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from bench.traffic.asking import Outcome
from bench.traffic.mix import Asked

# Sends a request that was to be sent at that time of the monotonic clock.
Send: TypeAlias = Callable[[Asked, float], Awaitable[Outcome]]


def poisson_times(rate: float, seed: int, *, count: int | None = None, seconds: float | None = None) -> list[float]:
    """When requests come that arrive at random with a mean rate: seconds from the start, ascending.

    Args:
        rate: a second.
        count, seconds: where to end; at least one of them.
    """
    if count is None and seconds is None:
        raise ValueError("arrivals without end: give a count or seconds")
    draw = random.Random(seed)
    times: list[float] = []
    now = draw.expovariate(rate)
    while (count is None or len(times) < count) and (seconds is None or now < seconds):
        times.append(now)
        now += draw.expovariate(rate)
    return times


async def open_loop(requests: Iterable[Asked], times: Sequence[float], send: Send) -> list[Outcome]:
    """Send each request at its time, however many are open; outcomes in that order."""
    _settle()
    begun = time.monotonic()
    tasks: list[asyncio.Task[Outcome]] = []
    for asked, due in zip(requests, times, strict=False):
        await asyncio.sleep(begun + due - time.monotonic())
        tasks.append(asyncio.ensure_future(send(asked, begun + due)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(
    requests: Iterator[Asked], concurrency: int, send: Send, seconds: float | None = None
) -> list[Outcome]:
    """Keep so many requests open until there are no more, or until so many seconds have passed; as they were sent."""
    _settle()
    begun = time.monotonic()
    outcomes: list[Outcome] = []

    async def one_client() -> None:
        for asked in requests:
            outcomes.append(await send(asked, time.monotonic()))
            if seconds is not None and time.monotonic() - begun > seconds:
                return

    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    return sorted(outcomes, key=lambda outcome: outcome.asked.number)


def _settle() -> None:
    """Have no pauses of 80 ms, in which Python looks for garbage, counted as the server's."""
    gc.collect()
    gc.freeze()
