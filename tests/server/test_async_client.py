"""The asynchronous client against servers that say what they are told to say."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from bench.traffic.asking import Connections, ask
from bench.traffic.echo import answered
from bench.traffic.mix import Mix
from server.answers import Event
from server.async_client import AsyncClient
from server.errors import InvalidRequest, Overloaded, ServerError
from server.fields import Value
from server.protocol import Disconnected
from tests.odd_servers import OddTriton, Telling, said

FIELDS: dict[str, Value] = {"prompt": "a circle", "seed": 3}


async def streamed(url: str) -> list[Event]:
    async with AsyncClient(url) as client:
        return [event async for event in client.events(**FIELDS)]


def test_an_answer_has_its_images_and_metadata() -> None:
    async def asked(url: str) -> tuple[list[bytes], dict[str, Any]]:
        async with AsyncClient(url) as client:
            result = await client.generate(**FIELDS, num_images=2)
            return result.images, result.metadata

    with OddTriton() as server:
        images, metadata = asyncio.run(asked(server.url))
    assert images == [b"", b""]
    assert metadata["request"] == {"prompt": "a circle", "seed": 3, "num_images": 2}


def test_every_message_of_a_stream_is_an_event() -> None:
    told = [
        said(progress={"step": 1}),
        said(progress={"image": 0, "step": 2}, preview=b"small"),
        said(progress={"image": 0}, images=b"large"),
        said(metadata={"request": {}}),
    ]
    with Telling(*told) as server:
        events = asyncio.run(streamed(server.url))
    assert [event.kind for event in events] == ["progress", "preview", "image", "result"]
    assert [event.data for event in events] == [b"", b"small", b"large", b""]
    assert events[0].about == {"step": 1}
    assert events[-1].result is not None
    assert (events[-1].result.images, events[-1].result.metadata) == ([], {"request": {}})


def test_images_that_come_as_messages_of_their_own_are_counted() -> None:
    asked = Mix(faces=("stream",), images=(2,)).asked(0)
    names = ("request_id", "seed", "prompt", "num_inference_steps", "num_images", "sampler")
    image = said(progress={"image": 0}, images=b"large")

    async def outcome(url: str) -> str:
        async with Connections(url, 1) as connections:
            return (await ask(connections, asked)).status

    metadata = said(metadata={"request": {name: asked.fields[name] for name in names}})
    with Telling(image, image, metadata) as server:
        assert asyncio.run(outcome(server.url)) == "ok"
    with Telling(image, metadata) as server:
        assert asyncio.run(outcome(server.url)) == "wrong"


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        ([], ServerError, "ended without an answer"),
        ([said(progress={})], ServerError, "ended without an answer"),
        ([said(metadata={}), said(progress={})], ServerError, "went on after its answer"),
        ([said(error={"code": InvalidRequest.code, "message": "too big"})], InvalidRequest, "too big"),
        ([said(error={"code": "new", "message": "odd"})], ServerError, "odd"),
        ([said(error=[])], ServerError, "is not what our models send"),
        ([said(colour=b"red")], ServerError, "is not what our models send"),
        ([said(progress={}, images=b"whose")], ServerError, "of which image"),
    ],
)
def test_streams_that_end_otherwise_are_told(told: list[Any], kind: type[ServerError], words: str) -> None:
    with Telling(*told) as server, pytest.raises(kind, match=words):
        asyncio.run(streamed(server.url))


def test_a_refusal_says_when_to_come_again() -> None:
    refusal = said(error={"code": Overloaded.code, "message": "full", "retry_after_ms": 70})
    with Telling(refusal) as server, pytest.raises(Overloaded) as told:
        asyncio.run(streamed(server.url))
    assert told.value.retry_after_ms == 70


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:8001"])
def test_nobody_there_is_no_connection(address: str) -> None:
    async def asked() -> None:
        async with AsyncClient(address) as client:
            await client.generate(**FIELDS)

    with pytest.raises(Disconnected, match="is the server running"):
        asyncio.run(asked())


def test_a_client_that_is_closed_ends_its_requests_and_a_cancelled_task_is_cancelled() -> None:
    held = threading.Event()

    def hold(request: Any) -> Any:
        held.wait(60)
        return answered(request)

    async def closed(url: str) -> None:
        client = AsyncClient(url)
        task = asyncio.create_task(client.generate(**FIELDS))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(Disconnected, match="closed before there was an answer"):
            await task

    async def cancelled(url: str) -> None:
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.generate(**FIELDS))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with OddTriton(hold) as server:
        try:
            asyncio.run(closed(server.url))
            asyncio.run(cancelled(server.url))
        finally:
            held.set()
