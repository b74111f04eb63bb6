"""The protocol's binary tensors over HTTP; the real Triton is asked in `tests/bench/test_online.py`."""

from __future__ import annotations

import asyncio
import json
import struct

import numpy as np
import pytest

from bench.traffic.http_face import HttpClient, read_answer, request_body
from server.errors import Cancelled, InvalidRequest, Overloaded, ServerError
from server.protocol import Disconnected
from tests.odd_servers import listener


def answer(*outputs: tuple[str, list[bytes]]) -> tuple[bytes, str]:
    parts = [b"".join(struct.pack("<I", len(value)) + value for value in values) for _, values in outputs]
    told = [
        {"name": name, "datatype": "BYTES", "shape": [len(values)], "parameters": {"binary_data_size": len(part)}}
        for (name, values), part in zip(outputs, parts, strict=True)
    ]
    header = json.dumps({"outputs": told}).encode()
    return header + b"".join(parts), str(len(header))


def test_a_request_has_its_values_after_the_json() -> None:
    body, length = request_body({"prompt": "é", "seed": 5, "sigmas": [3.0, 1.0], "init_image": b"\x89PNG"})
    told = json.loads(body[:length])
    assert told["parameters"] == {"binary_data_output": True}
    assert [(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]] == [
        ("prompt", "BYTES", [1]),
        ("seed", "INT64", [1]),
        ("sigmas", "FP32", [2]),
        ("init_image", "BYTES", [1]),
    ]
    values = (
        b"\x02\0\0\0" + "é".encode(),
        struct.pack("<q", 5),
        np.array([3, 1], np.float32).tobytes(),
        b"\x04\0\0\0\x89PNG",
    )
    assert body[length:] == b"".join(values)
    assert [one["parameters"]["binary_data_size"] for one in told["inputs"]] == [len(value) for value in values]


def test_an_answer_is_read_as_it_was_written() -> None:
    body, length = answer(("images", [b"one", b""]), ("metadata", [b"{}"]))
    assert read_answer(body, length, ("images", "metadata")) == {"images": [b"one", b""], "metadata": [b"{}"]}


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"{}", None),
        (b"[]", "2"),
        (b"garbage", "7"),
        (b'{"outputs": [{"name": "images"}]}', None),
        (answer(("images", [b"x"]))[0], answer(("images", [b"x"]))[1]),
        (answer(("images", [b"x"]), ("metadata", [b"y"]))[0][:-1], answer(("images", [b"x"]), ("metadata", [b"y"]))[1]),
        (*answer(("images", []), ("metadata", [b"y"])),),
    ],
)
def test_an_answer_that_is_garbage_is_told(body: bytes, length: str | None) -> None:
    with pytest.raises(ServerError, match="is not what stable_diffusion sends"):
        read_answer(body, length, ("images", "metadata"))


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        ("400 Bad Request", "steps is 0", InvalidRequest),
        ("400 Bad Request", "the request was cancelled by its id", Cancelled),
        ("503 Service Unavailable", "the queue is full", Overloaded),
        ("500 Internal Server Error", "decoding failed", ServerError),
    ],
)
def test_a_refusal_is_the_error_that_it_is_over_grpc(status: str, words: str, kind: type[ServerError]) -> None:
    told = json.dumps({"error": words}).encode()
    with listener(f"HTTP/1.1 {status}\r\nContent-Length: {len(told)}\r\n\r\n".encode() + told) as url:
        assert type(failure_of(url)) is kind
        assert str(failure_of(url)) == words


def test_a_connection_that_breaks_is_no_refusal() -> None:
    with listener(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nbut") as url:
        assert isinstance(failure_of(url), Disconnected)
    assert isinstance(failure_of("127.0.0.1:1"), Disconnected)


def test_what_says_nothing_is_not_waited_for() -> None:
    async def checked(url: str) -> None:
        client = HttpClient(url)
        try:
            await client.check(seconds=0.2)
        finally:
            await client.close()

    with listener(b"") as url, pytest.raises(ServerError, match=r"nothing in 0\.2 s"):
        asyncio.run(checked(url))


def failure_of(url: str) -> ServerError:
    async def failed() -> ServerError:
        client = HttpClient(url)
        try:
            await client.generate(prompt="x")
        except ServerError as error:
            return error
        finally:
            await client.close()
        raise AssertionError("it was answered")

    return asyncio.run(failed())
