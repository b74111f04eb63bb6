"""A gRPC client for asyncio: any number of requests at once over one connection, each of which can be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import grpc  # type: ignore[import-untyped]
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException

from server.client import ERRORS, ERRORS_AS_DATA, KINDS, Result, input_tensors
from server.errors import Overloaded, ServerError
from server.fields import CANCEL, Value
from server.repository import FACE, STREAM

EventKind: TypeAlias = Literal["progress", "preview", "image", "result"]
# gRPC gives a broken connection the code that a server which refuses has, and other words.
BROKEN = re.compile(
    r"failed to connect|stream removed|socket closed|connection (reset|refused|aborted)|broken pipe|goaway|"
    r"(recv|send)msg|keepalive|endpoint clos|transport clos",
    re.IGNORECASE,
)
CHANNEL = (
    # Without a pool of its own, a client would share the connection of every other client of the same address.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that was started again is found soon; gRPC would wait for up to two minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Disconnected(Overloaded):
    """The connection broke, or could not be made, before there was an answer."""


@dataclass(frozen=True, slots=True)
class Event:
    """One message of a stream.

    Attributes:
        about: what the server says of it, as `server.client.Client.stream` tells.
        data: JPEG of a preview, encoded image of an `image`.
        result: of the last message, `result`; without images that came as messages of their own.
    """

    kind: EventKind
    about: Mapping[str, Any] = field(default_factory=dict)
    data: bytes = b""
    result: Result | None = None


class AsyncClient:
    """Talks to a server at `host:port` over gRPC; an asynchronous context manager, for one event loop.

    To cancel a request, cancel the task that waits for it.

    Args:
        unary: the model that `generate` asks.
        batched: whether that model has a batch dimension before the fields' own.
    """

    def __init__(self, url: str = "127.0.0.1:8001", unary: str = FACE, *, batched: bool = False) -> None:
        self._unary = unary
        self._batched = batched
        self._client = aio.InferenceServerClient(url, channel_args=CHANNEL)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; open requests end as `Disconnected`, and the server cancels them."""
        await self._client.close()

    async def is_ready(self) -> bool:
        """Whether the server answers that all its models are ready."""
        try:
            return bool(await self._client.is_server_ready())
        except InferenceServerException:
            return False

    async def generate(self, **fields: Value) -> Result:
        """Ask the unary model; fields are those of `server.request.FIELDS`.

        Raises:
            InvalidRequest: the request is at fault.
            Disconnected: nobody answered.
            Overloaded: try again later.
            ServerError: anything else.
        """
        answer = await self._infer(fields)
        images, metadata = (answer.as_numpy(name).reshape(-1) for name in ("images", "metadata"))
        return Result(list(images), json.loads(metadata[0]))

    async def cancel(self, request_id: str) -> int:
        """Cancel the open requests of this id; returns how many.

        Raises:
            NotFound: there is none.
        """
        answer = await self._infer({CANCEL.name: request_id})
        return int(json.loads(answer.as_numpy("metadata")[0])["cancelled"])

    async def events(self, **fields: Value) -> AsyncGenerator[Event, None]:
        """Ask the streaming model; gives what it sends until it ends the stream.

        Closing the iterator before the answer cancels the request.

        Raises:
            as `generate`; a ServerError too when the stream ends without an answer, or goes on after it.
        """

        async def asked() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": STREAM, "inputs": tensors, "parameters": {ERRORS_AS_DATA: True}}

        tensors, answered = input_tensors(fields), False
        failure: ServerError | None = None
        answers = self._client.stream_infer(asked())
        try:
            with _translating():
                async for answer, error in answers:
                    if error is not None:
                        raise error
                    if answered:
                        raise ServerError("the stream went on after its answer")
                    failure = _failure(answer)
                    event = None if failure else _event(answer)
                    answered = event is None or event.kind == "result"
                    if event is not None:
                        yield event
        finally:
            await _ended(answers, cancel=not answered)
        if not answered or failure is not None:
            raise failure or ServerError("the stream ended without an answer")

    async def _infer(self, fields: Mapping[str, Value]) -> Any:
        tensors = input_tensors(fields)
        for tensor in tensors if self._batched else ():
            tensor.set_shape([1, *tensor.shape()])
        with _translating():
            return await self._client.infer(self._unary, tensors)


async def _ended(answers: Any, *, cancel: bool) -> None:
    """Let go of a stream.

    Once it is answered it ends by itself, and must: when a client cancels at that moment, Triton 2.51.0 may keep the
    request for ever, and then takes its whole exit timeout to stop.
    """
    if cancel:
        answers.cancel()
        return
    with contextlib.suppress(ServerError), _translating():
        async for _ in answers:
            pass


def _failure(answer: Any) -> ServerError | None:
    """The failure that a stream's message tells, if it does."""
    if all(tensor.name != "error" for tensor in answer.get_response().outputs):
        return None
    told = json.loads(answer.as_numpy("error")[0])
    failure = KINDS.get(told["code"], ServerError)(told["message"])
    if isinstance(failure, Overloaded):
        failure.retry_after_ms = told.get("retry_after_ms")
    return failure


def _event(answer: Any) -> Event:
    outputs = {tensor.name for tensor in answer.get_response().outputs}
    if "metadata" in outputs:
        images = list(answer.as_numpy("images")) if "images" in outputs else []
        return Event("result", result=Result(images, json.loads(answer.as_numpy("metadata")[0])))
    about = json.loads(answer.as_numpy("progress")[0])
    if "preview" in outputs:
        return Event("preview", about, answer.as_numpy("preview")[0])
    if "images" in outputs:
        return Event("image", about, answer.as_numpy("images")[0])
    return Event("progress", about)


@contextlib.contextmanager
def _translating() -> Iterator[None]:
    """Raise gRPC's errors as ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise _translated(error.code().name, error.details()) from None
    except InferenceServerException as error:
        status = str(error.status() or "").removeprefix("StatusCode.")
        raise _translated(status, error.message()) from None
    except asyncio.CancelledError:
        # gRPC says the same when the client was closed as when the task was cancelled.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Disconnected("the connection was closed before there was an answer") from None


def _translated(status: str, message: str) -> ServerError:
    if status == "UNAVAILABLE" and BROKEN.search(message):
        return Disconnected(f"{message} (is the server running, and is the address right?)")
    return ERRORS.get(status, ServerError)(message)
