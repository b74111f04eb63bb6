"""One request of a load sent over gRPC or HTTP, ended as its client would, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bench.traffic.http_face import HttpClient
from bench.traffic.mix import Asked
from server.answers import Result
from server.async_client import AsyncClient
from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError
from server.forwarding import GONE
from server.protocol import Disconnected, Message
from server.sampler_names import find_sampler

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
        cached: whether the server had the answer already.
    """

    asked: Asked
    status: Status
    intended: float
    sent: float
    ended: float
    message: str = ""
    first_preview: float | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    cached: bool = False

    @property
    def seconds(self) -> float:
        return self.ended - self.intended


class Connections:
    """A few connections that the requests of a load share in turn; one event loop's.

    Args:
        url: `host:port` of the server's gRPC.
        count: how many.
        http_url: of its HTTP endpoint, for requests with that face.
    """

    def __init__(self, url: str, count: int = 4, http_url: str | None = None) -> None:
        self.url = url
        self._clients = [AsyncClient(url) for _ in range(count)]
        self._http_url = http_url
        self._http: HttpClient | None = None

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.gather(*(client.close() for client in self._clients))
        if self._http is not None:
            await self._http.close()

    def __getitem__(self, number: int) -> AsyncClient:
        return self._clients[number % len(self._clients)]

    def client(self, asked: Asked) -> AsyncClient | HttpClient:
        """The connection of a request.

        Raises:
            ServerError: it goes over HTTP, and nobody has said where.
        """
        return self.http if asked.face == "http" else self[asked.number]

    @property
    def http(self) -> HttpClient:
        if self._http is None:
            self._http = self.opened_http()
        return self._http

    def opened_http(self) -> HttpClient:
        """A client for HTTP that is nobody else's."""
        if self._http_url is None:
            raise ServerError("face http needs the address of the server's HTTP: give --http-url http://host:8000")
        return HttpClient(self._http_url)

    def own(self, asked: Asked) -> AsyncClient | HttpClient:
        """A new connection for a request that will close it."""
        return self.opened_http() if asked.face == "http" else AsyncClient(self.url)


class _Asking:
    """A request on its way."""

    def __init__(self, client: AsyncClient | HttpClient, asked: Asked, message: Message | None) -> None:
        self.asked = asked
        self.first_preview: float | None = None
        self.ended = 0.0
        self.client = client
        self._message = message

    async def answer(self) -> Result:
        """Raises what `server.async_client.AsyncClient.generate` does."""
        try:
            message = built(self.client, self.asked) if self._message is None else self._message
            if isinstance(self.client, AsyncClient) and self.asked.face == "stream":
                return await self._stream(self.client, message)
            return await self.client.send(message)
        finally:
            self.ended = self.ended or time.monotonic()

    async def _stream(self, client: AsyncClient, message: Message) -> Result:
        """Reads to the end of the stream, so that a second answer would be noticed."""
        result, images = None, list[bytes]()
        async with contextlib.aclosing(client.stream(message)) as events:
            async for event in events:
                if event.kind == "preview" and self.first_preview is None:
                    self.first_preview = time.monotonic()
                if event.kind == "image":
                    images.append(event.data)
                if event.result is not None:
                    result, self.ended = event.result, time.monotonic()
        assert result is not None
        return Result(result.images or images, result.metadata)


def built(client: AsyncClient | HttpClient, asked: Asked) -> Message:
    """What is sent for a request.

    Raises:
        InvalidRequest: its fields are none.
    """
    if isinstance(client, AsyncClient) and asked.face == "stream":
        return client.stream_message(**asked.fields)
    return client.message(**asked.fields)


async def ask(
    connections: Connections,
    asked: Asked,
    intended: float | None = None,
    limit: float = 120.0,
    message: Message | None = None,
) -> Outcome:
    """Send a request now; gives what became of it, and never raises what a server can cause.

    Args:
        intended: when it was to be sent; now, when absent.
        limit: seconds after which a request without an answer counts as lost.
        message: what `built` gives, where it was built ahead.
    """
    sent = time.monotonic()
    intended = sent if intended is None else intended
    own = connections.own(asked) if asked.ending == "close" else None
    asking = _Asking(own or connections.client(asked), asked, message)
    try:
        if asked.ending == "answer":
            status, words, result = await _answered(asking, limit)
        else:
            status, words, result = await _seen_through(asking, connections, limit)
    finally:
        if own is not None:
            await own.close()
    told: Mapping[str, Any] = result.metadata if result is not None else {}
    times = {"timing": told.get("timing", {}), "cached": bool(told.get("cached"))}
    ended = asking.ended or time.monotonic()
    return Outcome(asked, status, intended, sent, ended, words, asking.first_preview, **times)


async def _answered(asking: _Asking, limit: float) -> tuple[Status, str, Result | None]:
    """For a client that waits: without a task of its own, which would cost as much as the rest of sending."""
    try:
        async with asyncio.timeout(limit):
            return _checked(await asking.answer(), asking.asked)
    except ServerError as error:
        return status_of(error, asking.asked), str(error), None
    except TimeoutError:
        return "lost", f"no answer in {limit:.0f} s", None


async def _seen_through(asking: _Asking, connections: Connections, limit: float) -> tuple[Status, str, Result | None]:
    asked, task = asking.asked, asyncio.create_task(asking.answer())
    try:
        await asyncio.wait({task}, timeout=asked.leaves_after)
        if not task.done() and asked.ending == "id":
            await _cancel_by_id(connections.client(asked), asked)
        elif not task.done():
            asking.ended = time.monotonic()
            await _leave(asking, task)
            return "left", "", None
        done, _ = await asyncio.wait({task}, timeout=limit)
        if not done:
            await _leave(asking, task)
            return "lost", f"no answer in {limit:.0f} s", None
        return _read(task, asked)
    finally:
        task.cancel()


async def _cancel_by_id(client: AsyncClient | HttpClient, asked: Asked) -> None:
    # The answer may have come in the meantime, or the request may not have been read yet, or the server may be down.
    with contextlib.suppress(ServerError):
        await client.cancel(str(asked.fields["request_id"]))


async def _leave(asking: _Asking, task: asyncio.Task[Result]) -> None:
    if asking.asked.ending == "close":
        await asking.client.close()
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _read(task: asyncio.Task[Result], asked: Asked) -> tuple[Status, str, Result | None]:
    try:
        result = task.result()
    except ServerError as error:
        return status_of(error, asked), str(error), None
    except asyncio.CancelledError:
        return "disconnected", "the call was cancelled by gRPC", None
    return _checked(result, asked)


def _checked(result: Result, asked: Asked) -> tuple[Status, str, Result | None]:
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
    served, names = metadata.get("request"), ("request_id", "seed", "prompt", "num_inference_steps", "num_images")
    if not isinstance(served, Mapping) or not isinstance(metadata.get("timing", {}), Mapping):
        return f"metadata does not say what was drawn: {str(dict(metadata))[:200]}"
    wanted = {name: asked.fields.get(name) for name in names}
    found = find_sampler(str(asked.fields.get("sampler")))
    wanted["sampler"] = found[0] if found else asked.fields.get("sampler")
    wrong = [f"{name} {served.get(name)!r}" for name, value in wanted.items() if served.get(name) != value]
    wrong += [f"{images} images"] if images != asked.images else []
    return f"asked {wanted}, answered {', '.join(wrong)}" if wrong else ""
