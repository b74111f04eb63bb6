"""One request of a load sent over gRPC, ended as its client would, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bench.traffic.mix import Asked
from server.async_client import AsyncClient, Disconnected
from server.client import Result
from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError
from server.forwarding import GONE

# refused: there was no room, or the deadline could not be met; expired: the deadline passed; left: nobody waited for
# an answer; disconnected: the connection or the process behind it broke; lost: no answer in all that time; wrong:
# another request's answer.
Status: TypeAlias = Literal[
    "ok", "invalid", "refused", "expired", "cancelled", "left", "disconnected", "error", "lost", "wrong"
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request; times in seconds of the monotonic clock.

    Attributes:
        intended: when it was to be sent; latency counts from here.
        sent, ended: when it was sent, and answered or left.
        first_preview: when that came.
        timing: of the server's metadata.
    """

    asked: Asked
    status: Status
    intended: float
    sent: float
    ended: float
    message: str = ""
    first_preview: float | None = None
    timing: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.ended - self.intended


class Connections:
    """A few connections that the requests of a load share in turn; one event loop's.

    Args:
        url: `host:port` of the server's gRPC.
        count: how many.
    """

    def __init__(self, url: str, count: int = 4) -> None:
        self.url = url
        self._clients = [AsyncClient(url) for _ in range(count)]

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.gather(*(client.close() for client in self._clients))

    def __getitem__(self, number: int) -> AsyncClient:
        return self._clients[number % len(self._clients)]


class _Asking:
    """A request on its way."""

    def __init__(self, client: AsyncClient, asked: Asked) -> None:
        self.asked = asked
        self.first_preview: float | None = None
        self.ended = 0.0
        self.client = client
        self.task = asyncio.create_task(self._unary() if asked.face == "unary" else self._stream())

    async def _unary(self) -> Result:
        try:
            return await self.client.generate(**self.asked.fields)
        finally:
            self.ended = time.monotonic()

    async def _stream(self) -> Result:
        """Reads to the end of the stream, so that a second answer would be noticed."""
        result = None
        try:
            async with contextlib.aclosing(self.client.events(**self.asked.fields)) as events:
                async for event in events:
                    if event.kind == "preview" and self.first_preview is None:
                        self.first_preview = time.monotonic()
                    if event.result is not None:
                        result, self.ended = event.result, time.monotonic()
        finally:
            self.ended = self.ended or time.monotonic()
        assert result is not None
        return result


async def ask(connections: Connections, asked: Asked, intended: float | None = None, limit: float = 120.0) -> Outcome:
    """Send a request now; gives what became of it, and never raises what a server can cause.

    Args:
        intended: when it was to be sent; now, when absent.
        limit: seconds after which a request without an answer counts as lost.
    """
    sent = time.monotonic()
    intended = sent if intended is None else intended
    own = AsyncClient(connections.url) if asked.ending == "close" else None
    asking = _Asking(own or connections[asked.number], asked)
    try:
        status, message, result = await _seen_through(asking, connections, limit)
    finally:
        if own is not None:
            await own.close()
    timing: Mapping[str, float] = result.metadata["timing"] if result is not None else {}
    ended = asking.ended or time.monotonic()
    return Outcome(asked, status, intended, sent, ended, message, asking.first_preview, timing)


async def _seen_through(asking: _Asking, connections: Connections, limit: float) -> tuple[Status, str, Result | None]:
    asked, task = asking.asked, asking.task
    if asked.ending != "answer":
        await asyncio.wait({task}, timeout=asked.leaves_after)
        if not task.done() and asked.ending == "id":
            await _cancel_by_id(connections[asked.number], asked)
        elif not task.done():
            asking.ended = time.monotonic()
            await _leave(asking)
            return "left", "", None
    done, _ = await asyncio.wait({task}, timeout=limit)
    if not done:
        await _leave(asking)
        return "lost", f"no answer in {limit:.0f} s", None
    return _read(task, asked)


async def _cancel_by_id(client: AsyncClient, asked: Asked) -> None:
    # The answer may have come in the meantime, or the request may not have been read yet, or the server may be down.
    with contextlib.suppress(ServerError):
        await client.cancel(str(asked.fields["request_id"]))


async def _leave(asking: _Asking) -> None:
    if asking.asked.ending == "close":
        await asking.client.close()
    asking.task.cancel()
    await asyncio.wait({asking.task})
    if not asking.task.cancelled():
        asking.task.exception()


def _read(task: asyncio.Task[Result], asked: Asked) -> tuple[Status, str, Result | None]:
    try:
        result = task.result()
    except ServerError as error:
        return status_of(error, asked), str(error), None
    except asyncio.CancelledError:
        return "disconnected", "the call was cancelled by gRPC", None
    complaint = mismatch(result.metadata, len(result.images), asked)
    return ("wrong", complaint, None) if complaint else ("ok", "", result)


def status_of(error: ServerError, asked: Asked) -> Status:
    """What an error means for its request."""
    match error:
        case Disconnected():
            return "disconnected"
        case Overloaded() if GONE in str(error):
            return "disconnected"
        case Overloaded():
            return "expired" if asked.fields.get("timeout_ms") and "passed before" in str(error) else "refused"
        case InvalidRequest() | NotFound():
            return "invalid"
        case Cancelled():
            return "cancelled"
        case _:
            return "error"


def mismatch(metadata: Mapping[str, Any], images: int, asked: Asked) -> str:
    """What in an answer is not what was asked; empty when all is."""
    served = metadata["request"]
    names = ("request_id", "seed", "prompt", "num_inference_steps", "sampler", "num_images")
    wrong = [f"{name} {served.get(name)!r}" for name in names if served.get(name) != asked.fields.get(name)]
    wrong += [f"{images} images"] if images != asked.images else []
    return f"asked {asked.fields}, answered {', '.join(wrong)}" if wrong else ""
