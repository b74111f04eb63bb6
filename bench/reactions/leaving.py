"""How soon a request that its client has left makes room for another, which needs the same rows of the UNet's calls."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

from bench.reactions.kept import Kept
from bench.serving import accelerator_curve, fake_config, started
from bench.traffic.latencies import milliseconds
from server.async_client import AsyncClient
from server.errors import Cancelled, ServerError
from server.fields import Value

# One guided image fills every call.
MAX_ROWS = 2
LONG_STEPS, STEPS = 200, 1
# For a request to get from its client to its place in the queue.
SETTLE_SECONDS = 0.05
LAST: dict[str, Value] = {"priority": -10}
PROMPT = "a red circle on a blue background"
Leave: TypeAlias = Callable[[asyncio.Task[None], str], Awaitable[object]]


def leaving(model: Path, accelerator: str, repeats: int, log: Path, kept: Kept) -> dict[str, Any]:
    """Milliseconds from the moment a client leaves until the rows work for who waited, by the way it leaves."""
    curve = accelerator_curve(accelerator)
    with started(fake_config(model, curve, max_rows=MAX_ROWS), log) as server:
        found = asyncio.run(_all(server.grpc_url, repeats, dict(curve)[MAX_ROWS]))
    kept["rows freed after leaving"] = {way: [1e3 * one for one in seconds] for way, seconds in found.items()}
    return {
        "step_ms": round(1e3 * dict(curve)[MAX_ROWS], 3),
        "freed_ms": {way: milliseconds(seconds) for way, seconds in found.items()},
    }


async def _all(url: str, repeats: int, step_seconds: float) -> dict[str, list[float]]:
    draw = random.Random(0)
    async with AsyncClient(url) as runner, AsyncClient(url) as other:

        async def stream(fields: dict[str, Value]) -> None:
            async with contextlib.aclosing(runner.events(**fields, progress_interval=1)) as events:
                async for _ in events:
                    pass

        async def unary(fields: dict[str, Value]) -> None:
            await runner.generate(**fields)

        async def cancel_call(task: asyncio.Task[None], name: str) -> None:
            task.cancel()

        async def cancel_id(task: asyncio.Task[None], name: str) -> None:
            await other.cancel(name)

        ways: dict[str, tuple[Callable[[dict[str, Value]], Awaitable[None]], Leave]] = {
            "stream": (stream, cancel_call),
            "unary": (unary, cancel_call),
            "id": (stream, cancel_id),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(repeats):
            for way, (send, leave) in ways.items():
                name = f"{way}-{turn}"
                phase = draw.uniform(0, step_seconds)
                seconds[way].append(await _freed(send, leave, other, name, phase))
    return seconds


async def _freed(
    send: Callable[[dict[str, Value]], Awaitable[None]], leave: Leave, other: AsyncClient, name: str, phase: float
) -> float:
    """Seconds, at most: what the answer took on its way counts as well.

    Raises:
        ServerError: the two requests did not meet as they should.
    """
    long: dict[str, Value] = {"prompt": PROMPT, "num_inference_steps": LONG_STEPS, "request_id": name}
    running = asyncio.ensure_future(send(long))
    await asyncio.sleep(SETTLE_SECONDS)
    waiting = asyncio.ensure_future(other.generate(prompt=PROMPT, num_inference_steps=STEPS, **LAST))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_cancelled, running, waiting)
        await asyncio.sleep(SETTLE_SECONDS + phase)
        left = time.monotonic()
        await leave(running, name)
        timing = (await waiting).metadata["timing"]
        seconds: float = time.monotonic() - timing["denoise_seconds"] - timing["decode_seconds"] - left
        stack.pop_all()
    (ended,) = await asyncio.gather(running, return_exceptions=True)
    if not isinstance(ended, BaseException):
        raise ServerError("the long request was answered, though its client had left it")
    if not isinstance(ended, asyncio.CancelledError | Cancelled):
        raise ended
    if seconds < 0:
        raise ServerError("the waiting request began before the other was left")
    return seconds


async def _cancelled(*requests: asyncio.Future[Any]) -> None:
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
