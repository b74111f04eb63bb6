"""Loads: requests that come by the clock, or a fixed number of clients that each wait for their answer."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from bench.traffic.asking import Outcome
from bench.traffic.mix import Asked

# Sends a request that was to be sent at that time of the monotonic clock.
Send: TypeAlias = Callable[[Asked, float], Awaitable[Outcome]]
# That the answers to what is open get when a load ends early.
GRACE_SECONDS = 5.0
# In which every request of a load ends without an answer, before it is given up.
PATIENCE_SECONDS = 5.0
# How often it is looked whether a load is to end.
LOOK_SECONDS = 0.25


class Halt:
    """Why a load ends before its time: its server has gone, or somebody wants it to.

    Args:
        patience: seconds in which every request ends without an answer.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.reason: str | None = None
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._gone_since: float | None = None

    def note(self, outcome: Outcome) -> None:
        """Look at what became of a request."""
        if outcome.status == "left":
            # Its client did not wait for the server to say anything.
            return
        if outcome.status not in ("disconnected", "lost"):
            self._gone_since = None
            return
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        if now - self._gone_since >= self._patience and self.reason is None:
            self.reason = f"the server has not answered for {now - self._gone_since:.0f} s: {outcome.message}"

    def watched(self, send: Send, pause: float = 0.0) -> Send:
        """The same, noted; after a broken connection with a pause, for clients that would try again at once."""

        async def noted(asked: Asked, intended: float) -> Outcome:
            outcome = await send(asked, intended)
            self.note(outcome)
            if pause and outcome.status == "disconnected":
                await asyncio.sleep(pause)
            return outcome

        return noted


async def open_loop(
    requests: Iterable[Asked],
    times: Sequence[float],
    send: Send,
    begun: float | None = None,
    halt: Halt | None = None,
) -> list[Outcome]:
    """Send each request at its time, however many are open; outcomes in that order.

    Args:
        begun: when the times count from, by the monotonic clock, of a caller that has settled; now, when absent.
        halt: ends the load early; what is open then and not answered soon has no outcome.
    """
    if begun is None:
        settle()
        begun = time.monotonic()
    tasks: list[asyncio.Task[Outcome]] = []
    for asked, due in zip(requests, times, strict=False):
        while (left := begun + due - time.monotonic()) > LOOK_SECONDS and not (halt and halt.reason):
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.sleep(0 if halt and halt.reason else left)
        if halt and halt.reason:
            break
        tasks.append(asyncio.ensure_future(send(asked, begun + due)))
    await _ended(tasks, halt)
    return [task.result() for task in tasks if not task.cancelled()]


async def closed_loop(
    requests: Iterator[Asked],
    concurrency: int,
    send: Send,
    seconds: float | None = None,
    halt: Halt | None = None,
) -> list[Outcome]:
    """Keep so many requests open until there are no more, or until so many seconds have passed; as they were sent."""
    settle()
    begun = time.monotonic()
    outcomes: list[Outcome] = []

    async def one_client() -> None:
        for asked in requests:
            outcomes.append(await send(asked, time.monotonic()))
            if (halt and halt.reason) or (seconds is not None and time.monotonic() - begun > seconds):
                return

    clients = [asyncio.ensure_future(one_client()) for _ in range(concurrency)]
    await _ended(clients, halt)
    for client in clients:
        if not client.cancelled():
            client.result()
    return sorted(outcomes, key=lambda outcome: outcome.asked.number)


async def _ended(tasks: Sequence[asyncio.Task[Outcome]] | Sequence[asyncio.Task[None]], halt: Halt | None) -> None:
    """Wait for all, or for a little longer than a halt."""
    pending: set[asyncio.Task[Outcome]] | set[asyncio.Task[None]] = set(tasks)  # type: ignore[assignment]
    while pending and not (halt and halt.reason):
        _, pending = await asyncio.wait(pending, timeout=LOOK_SECONDS if halt else None)
    if pending:
        _, pending = await asyncio.wait(pending, timeout=GRACE_SECONDS)
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)


def settle() -> None:
    """Have no pauses of 80 ms, in which Python looks for garbage, counted as the server's."""
    gc.collect()
    gc.freeze()
