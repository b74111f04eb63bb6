"""A gRPC client for asyncio: any number of requests at once over one connection, each of which can be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from server.answers import Event, Hearing, Result, object_of, result_of
from server.errors import NotFound, ServerError, TimedOut
from server.fields import CANCEL, Value
from server.protocol import CHANNEL, Disconnected, Message, message_of, stream_message, translating
from server.repository import FACE, STREAM


class AsyncClient:
    """Talks to a server at `host:port` over gRPC; an asynchronous context manager, for one event loop.

    To cancel a request, cancel the task that waits for it.

    Args:
        unary: the model that `generate` asks.
        batched: whether that model has a batch dimension before the fields' own.
    """

    def __init__(self, url: str = "127.0.0.1:8001", unary: str = FACE, *, batched: bool = False) -> None:
        self.url = url
        self._unary = unary
        self._batched = batched
        self._channel = grpc.aio.insecure_channel(url, options=CHANNEL)
        # tritonclient's own asynchronous client builds each request as it sends it, which takes longer than sending.
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; open requests end as `Disconnected`, and the server cancels them."""
        await self._channel.close()

    async def is_ready(self) -> bool:
        """Whether the server answers that all its models are ready."""
        try:
            return bool((await self._stub.ServerReady(service_pb2.ServerReadyRequest())).ready)
        except grpc.RpcError:
            return False

    async def check(self, models: Sequence[str] = (FACE, STREAM), seconds: float = 10.0) -> None:
        """Make sure that a Triton answers, and that these models are ready.

        Raises:
            ServerError: what is wrong instead.
        """
        remedy = "give the host:port of a Triton's gRPC (8001 unless it was changed)"
        try:
            async with asyncio.timeout(seconds):
                with _translating():
                    await self._stub.ServerMetadata(service_pb2.ServerMetadataRequest())
                    asked = [service_pb2.ModelReadyRequest(name=model) for model in models]
                    ready = [(await self._stub.ModelReady(one)).ready for one in asked]
        except Disconnected:
            raise
        except (ServerError, TimeoutError) as error:
            why = f"it does not answer in {seconds:g} s" if isinstance(error, TimeoutError | TimedOut) else error
            raise ServerError(f"what is at {self.url} does not answer as a Triton: {why}; {remedy}") from None
        if missing := [model for model, there in zip(models, ready, strict=True) if not there]:
            raise NotFound(
                f"the Triton at {self.url} has no model {' and '.join(missing)} that is ready; start one of ours"
            )

    async def told(self) -> dict[str, str]:
        """`name` and `version` that the Triton says of itself.

        Raises:
            ServerError: nobody answers, or something else does.
        """
        with _translating():
            found = await self._stub.ServerMetadata(service_pb2.ServerMetadataRequest())
        return {"name": found.name, "version": found.version}

    async def parameters(self, model: str = STREAM) -> dict[str, str]:
        """Those of a model's configuration, by name.

        Raises:
            ServerError: there is no such model, or the server does not tell.
        """
        with _translating():
            found = await self._stub.ModelConfig(service_pb2.ModelConfigRequest(name=model))
        return {name: parameter.string_value for name, parameter in found.config.parameters.items()}

    async def generate(self, **fields: Value) -> Result:
        """Ask the unary model; fields are those of `server.request.FIELDS`.

        Raises:
            InvalidRequest: the request is at fault.
            Disconnected: nobody answered.
            Overloaded: try again later.
            ServerError: anything else.
        """
        return await self.send(self.message(**fields))

    def message(self, **fields: Value) -> Message:
        """What `generate` sends, to be built ahead of `send`.

        Raises:
            InvalidRequest: a name that is no field, or a value that its type cannot hold.
        """
        return message_of(self._unary, fields, batched=self._batched)

    async def send(self, message: Message) -> Result:
        """Send what was built; raises as `generate`."""
        return result_of(await self._infer(message))

    async def cancel(self, request_id: str) -> int:
        """Cancel the open requests of this id; returns how many.

        Raises:
            NotFound: there is none.
        """
        answer = await self._infer(self.message(**{CANCEL.name: request_id}))
        return int(object_of(answer, "metadata").get("cancelled", 0))

    async def events(self, **fields: Value) -> AsyncGenerator[Event, None]:
        """Ask the streaming model; gives what it sends until it ends the stream.

        Closing the iterator before the answer cancels the request.

        Raises:
            as `generate`; a ServerError too when the stream ends without an answer, or goes on after it.
        """
        async with contextlib.aclosing(self.stream(self.stream_message(**fields))) as events:
            async for event in events:
                yield event

    def stream_message(self, **fields: Value) -> Message:
        """What `events` sends, to be built ahead of `stream`; raises as `message`."""
        return stream_message(fields)

    async def stream(self, message: Message) -> AsyncGenerator[Event, None]:
        """As `events`, for what was built."""

        async def asked() -> AsyncIterator[Message]:
            yield message

        answers, heard = self._stub.ModelStreamInfer(asked()), Hearing()
        try:
            with _translating():
                async for answer in answers:
                    if (event := heard.hear(answer)) is not None:
                        yield event
        finally:
            await _ended(answers, cancel=not heard.answered)
        heard.finish()

    async def _infer(self, message: Message) -> InferResult:
        with _translating():
            return InferResult(await self._stub.ModelInfer(message))


async def _ended(answers: Any, *, cancel: bool) -> None:
    """Let go of a stream, or let it end; see `Hearing.answered`."""
    if cancel:
        answers.cancel()
        return
    with contextlib.suppress(ServerError), _translating():
        async for _ in answers:
            pass


@contextlib.contextmanager
def _translating() -> Iterator[None]:
    """As `translating`, where a closed client says the same as a cancelled task."""
    try:
        with translating():
            yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Disconnected("the connection was closed before there was an answer") from None
