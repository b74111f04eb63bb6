"""A server with more to do than it can: how it refuses, how it keeps deadlines, and how short jobs fare among long."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from bench.reactions.kept import RATIO, REFUSAL, Kept
from bench.serving import accelerator_curve, fake_config, mean_rows, started
from bench.traffic import loops
from bench.traffic.arrivals import poisson_times
from bench.traffic.asking import Connections, Outcome, ask
from bench.traffic.latencies import milliseconds, percentile
from bench.traffic.mix import FACES, Asked, Face, Kind, Mix
from server.errors import Cancelled, NotFound, ServerError
from server.fields import Value

MAX_ROWS, QUEUE_LIMIT = 16, 32
SETTLE_SECONDS = 0.05
# Long enough to outlast what is measured beside it.
ENDLESS_STEPS = 500
# A second, far more than the server can serve; and at a time, where each waits for the others' turn on the processors.
FLOOD_RATE, CROWD = 100, 16
TIMEOUT_MS = 500
# Less than what is ahead in the queue takes, and more than a request takes alone.
PROBE_MS, TRIES = 2000, 50
GUEST_STEPS, COMPANION_STEPS = 10, 50
PROMPT = "a red circle on a blue background"


def crowd(
    model: Path, accelerator: str, parts: Sequence[str], repeats: int, log: Path, kept: Kept, found: dict[str, Any]
) -> None:
    """Those of the parts `refusal`, `deadline` and `guest` that are asked for, into `found` as they come."""
    config = fake_config(model, accelerator_curve(accelerator), MAX_ROWS, QUEUE_LIMIT)
    with started(config, log) as server:
        asyncio.run(_parts(server.grpc_url, parts, repeats, kept, found))


async def _parts(url: str, parts: Sequence[str], repeats: int, kept: Kept, found: dict[str, Any]) -> None:
    async with Connections(url) as connections:
        await loops.closed_loop(Mix(steps=(2,)).requests(16), 4, lambda asked, due: ask(connections, asked, due))
        if "refusal" in parts:
            await refusals(connections, 5 * repeats, kept, found)
        if "deadline" in parts:
            found["deadline"] = await deadlines(connections, repeats, kept)
        if "guest" in parts:
            found["guest"] = await guests(connections, repeats, kept)


def _asked(number: int, steps: int, face: Face = "unary", images: int = 1, **fields: Value) -> Asked:
    kind = Kind(steps, "euler", 7.5, 128, 128, images)
    every: dict[str, Value] = {"prompt": PROMPT, "num_inference_steps": steps, "seed": number, "num_images": images}
    return Asked(number, {**every, "sampler": "euler", "request_id": f"crowd-{number}", **fields}, kind, face)


@contextlib.asynccontextmanager
async def _busy(connections: Connections, requests: Sequence[Asked]) -> AsyncIterator[None]:
    """A server that works on these until the block ends, where they are cancelled."""
    tasks = {
        asyncio.create_task(connections[asked.number].generate(**asked.fields)): str(asked.fields["request_id"])
        for asked in requests
    }
    await asyncio.sleep(SETTLE_SECONDS)
    try:
        yield
    finally:
        # Again and again, since one that has not been read yet cannot be cancelled.
        while pending := [task for task in tasks if not task.done()]:
            for task in pending:
                with contextlib.suppress(NotFound):
                    await connections[0].cancel(tasks[task])
            await asyncio.wait(pending, timeout=SETTLE_SECONDS)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        if failed := [end for end in ends if isinstance(end, BaseException) and not isinstance(end, Cancelled)]:
            raise failed[0]
        await asyncio.sleep(SETTLE_SECONDS)


async def refusals(connections: Connections, count: int, kept: Kept, found: dict[str, Any]) -> None:
    """Milliseconds until a request is refused, and the share that is told when to try again, by the reason."""
    half = [_asked(1, ENDLESS_STEPS, images=16, client_id="first", priority=10)]
    full = [*half, _asked(2, ENDLESS_STEPS, images=16, client_id="second", priority=10)]
    by_reason = found.setdefault("refusal", {})
    async with _busy(connections, full):
        await _until_refused(connections, "waiting or running")
        by_reason["full"] = await _flood(connections, count, 0, kept.setdefault(f"{REFUSAL}, full", {}))
    async with _busy(connections, half):
        await _until_refused(connections, "would be done in")
        taken = kept.setdefault(f"{REFUSAL}, deadline too near for the queue", {})
        by_reason["deadline_too_near_for_the_queue"] = await _flood(connections, count, PROBE_MS, taken)
    taken = kept.setdefault(f"{REFUSAL}, deadline too near alone", {})
    by_reason["deadline_too_near_alone"] = await _flood(connections, count, 50, taken)


async def _flood(
    connections: Connections, count: int, timeout_ms: int, taken: dict[str, list[float]]
) -> dict[str, Any]:
    async def send(asked: Asked, intended: float) -> Outcome:
        return await ask(connections, asked, intended)

    found: dict[str, Any] = {}
    for face in FACES:
        requests = [_asked(10 + n, 50, face, client_id="late", timeout_ms=timeout_ms) for n in range(count)]
        times = poisson_times(FLOOD_RATE, 0, count=count)
        floods = {
            f"{face}, 1 at a time": await loops.closed_loop(iter(requests), 1, send),
            f"{face}, {FLOOD_RATE} a second": await loops.open_loop(requests, times, send),
            f"{face}, {CROWD} at a time": await loops.closed_loop(iter(requests), CROWD, send),
        }
        for name, outcomes in floods.items():
            found[name] = _refused(outcomes)
            taken[name] = [1e3 * outcome.seconds for outcome in outcomes]
    return found


async def _until_refused(connections: Connections, words: str) -> None:
    """Until the server is as busy as it is to be.

    Raises:
        ServerError: that does not come to pass.
    """
    for _ in range(TRIES):
        outcome = await ask(connections, _asked(9, 50, client_id="late", timeout_ms=PROBE_MS))
        if words in outcome.message:
            return
        await asyncio.sleep(SETTLE_SECONDS)
    raise ServerError(f"the server does not refuse requests that it cannot serve: one ended as {outcome.status}")


def _refused(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """
    Raises:
        ServerError: one of them was not refused.
    """
    other = [outcome for outcome in outcomes if outcome.status != "refused"]
    if other:
        raise ServerError(f"a request that was to be refused ended as {other[0].status}: {other[0].message}")
    told = sum("retry after" in outcome.message for outcome in outcomes) / len(outcomes)
    words = outcomes[-1].message
    return {**milliseconds([o.seconds for o in outcomes]), "told_when_to_retry": told, "words": words}


async def deadlines(connections: Connections, repeats: int, kept: Kept) -> dict[str, Any]:
    """Milliseconds from the end of `timeout_ms` to the answer, of requests that were let in and then overtaken."""
    ended: dict[str, list[Outcome]] = {"running": [], "waiting": []}
    urgent = [_asked(n, COMPANION_STEPS, priority=10) for n in range(11, 19)]
    short = [_asked(n, 6, priority=10) for n in range(1, 9)]
    for _ in range(repeats):
        # It has begun when the others come, and gets no row from then on.
        begun = asyncio.create_task(ask(connections, _asked(20, 20, timeout_ms=TIMEOUT_MS)))
        await asyncio.sleep(SETTLE_SECONDS)
        async with _busy(connections, urgent):
            ended["running"].append(await begun)
        # Short ones fill the calls, and before they are done the others come.
        async with _busy(connections, short):
            begun = asyncio.create_task(ask(connections, _asked(21, 4, timeout_ms=TIMEOUT_MS)))
            await asyncio.sleep(SETTLE_SECONDS / 2)
            async with _busy(connections, urgent):
                ended["waiting"].append(await begun)
    late = {name: _lateness(outcomes) for name, outcomes in ended.items()}
    kept["answer after the deadline"] = {name: [1e3 * one for one in seconds] for name, seconds in late.items()}
    return {name: milliseconds(seconds) for name, seconds in late.items()}


def _lateness(outcomes: Sequence[Outcome]) -> list[float]:
    """Of those that expired: on a busy machine the others may overtake too soon or too late.

    Raises:
        ServerError: most did not.
    """
    late = [outcome.ended - outcome.sent - TIMEOUT_MS / 1000 for outcome in outcomes if outcome.status == "expired"]
    if 2 * len(late) < len(outcomes):
        other = next(outcome for outcome in outcomes if outcome.status != "expired")
        raise ServerError(f"a request that was to expire ended as {other.status}: {other.message}")
    return late


async def guests(connections: Connections, repeats: int, kept: Kept) -> dict[str, Any]:
    """A short job among long ones that fill every call: its time over its time alone."""
    alone = statistics.median([(await _answered(connections, n, GUEST_STEPS)).seconds for n in range(10)])
    stopping = asyncio.Event()
    served: list[Outcome] = []

    async def companion(number: int) -> None:
        while not stopping.is_set():
            served.append(await _answered(connections, number, COMPANION_STEPS))

    companions = [asyncio.create_task(companion(100 + n)) for n in range(MAX_ROWS // 2)]
    await asyncio.sleep(1.0)
    draw = random.Random(0)
    times = []
    try:
        for turn in range(repeats):
            await asyncio.sleep(draw.uniform(0, 0.3))
            times.append((await _answered(connections, 200 + turn, GUEST_STEPS)).seconds)
    finally:
        stopping.set()
        ends = await asyncio.gather(*companions, return_exceptions=True)
    if failed := [end for end in ends if end is not None]:
        # Without all of its companions a guest would not have been among long jobs.
        raise failed[0]
    ratios = [seconds / alone for seconds in times]
    kept[f"guest's time {RATIO}"] = {"": ratios}
    return {
        "alone_ms": round(1e3 * alone, 3),
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "p95": round(percentile(ratios, 0.95), 3),
            "worst": round(max(ratios), 3),
        },
        "companion_ms": milliseconds([outcome.seconds for outcome in served]),
        "companions_rows_per_call": round(mean_rows([outcome.timing for outcome in served]) or 0.0, 2),
    }


async def _answered(connections: Connections, number: int, steps: int) -> Outcome:
    begun = time.monotonic()
    outcome = await ask(connections, _asked(number, steps), begun)
    if outcome.status != "ok":
        raise ServerError(f"a request of {steps} steps ended as {outcome.status}: {outcome.message}")
    return outcome
