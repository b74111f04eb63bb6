"""The client's side of a request; what a server answers is tested with the real one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.answers import Result
from server.client import Client
from server.errors import InvalidRequest, ServerError, TimedOut
from server.image import encode_image
from server.protocol import Disconnected
from tests.odd_servers import OddTriton, Telling, listener, said


@pytest.mark.parametrize("output_format", ["png", "raw"])
def test_pixels_of_a_result(output_format: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    data = encode_image(picture, output_format, "binary", {})
    request = {"output_format": output_format, "height": 64, "width": 64}
    result = Result([data], {"request": request, "sizes": [[8, 16]]})
    assert np.array_equal(result.pixels()[0], picture)


def test_pictures_of_a_result_may_have_several_sizes() -> None:
    sizes = [[8, 16], [4, 4]]
    pictures = [np.full((*size, 3), 7, np.uint8) for size in sizes]
    data = [picture.tobytes() for picture in pictures]
    found = Result(data, {"request": {"output_format": "raw"}, "sizes": sizes}).pixels()
    assert all(np.array_equal(one, other) for one, other in zip(found, pictures, strict=True))


def test_a_stream_tells_its_listeners_and_keeps_the_images_in_order() -> None:
    told = [
        said(progress={"step": 1}),
        said(progress={"image": 1, "step": 1}, preview=b"small"),
        said(progress={"image": 1}, images=b"second"),
        said(progress={"image": 0}, images=b"first"),
        said(metadata={"request": {}}),
    ]
    heard: list[Any] = []
    with Telling(*told) as server, Client(server.url, timeout=20) as client:
        result = client.stream(
            on_progress=heard.append,
            on_preview=lambda about, data: heard.append((about["image"], data)),
            on_image=lambda about, data: heard.append((about["image"], data)),
            prompt="a circle",
        )
    assert (result.images, result.metadata) == ([b"first", b"second"], {"request": {}})
    assert heard == [{"step": 1}, (1, b"small"), (1, b"second"), (0, b"first")]


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        (None, ServerError, "ended without an answer"),
        (said(progress={}), ServerError, "ended without an answer"),
        (said(error={"code": InvalidRequest.code, "message": "too big"}), InvalidRequest, "too big"),
        (said(error=[]), ServerError, "is not what our models send"),
        (said(colour=b"red"), ServerError, "is not what our models send"),
        (said(progress={}, preview=b"whose"), ServerError, "of which image"),
        (said(metadata=b"no object"), ServerError, "is not what our models send"),
    ],
)
def test_streams_of_other_servers_are_told(told: Any, kind: type[ServerError], words: str) -> None:
    with (
        Telling(*([] if told is None else [told])) as server,
        Client(server.url, timeout=20) as client,
        pytest.raises(kind, match=words),
    ):
        client.stream(prompt="a circle")


@pytest.mark.parametrize("answer", [said(images=b"a picture"), said(metadata=[1]), said(metadata=b"{", images=b"")])
def test_answers_of_other_servers_are_told(answer: Any) -> None:
    with OddTriton(infer=lambda request: answer) as server, Client(server.url, timeout=20) as client:
        for asked in (lambda: client.generate(prompt="a circle"), lambda: client.cancel("some")):
            with pytest.raises(ServerError, match="is not what our models send"):
                asked()


def test_nobody_there_is_no_connection() -> None:
    with Client("127.0.0.1:1") as client:
        for asked in (client.generate, client.stream):
            with pytest.raises(Disconnected, match="is the server running"):
                asked(prompt="a circle")


def test_a_timeout_ends_the_wait_for_a_server_that_says_nothing() -> None:
    with listener(b"") as address, Client(address, timeout=0.3) as client, pytest.raises((TimedOut, Disconnected)):
        client.generate(prompt="a circle")
