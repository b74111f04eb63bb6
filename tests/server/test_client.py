"""The client's side of a request; what a server answers is tested with the real one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.answers import Result
from server.client import Client, input_tensors
from server.errors import InvalidRequest, ServerError
from server.fields import Raster
from server.image import encode_image
from tests.odd_servers import OddTriton, Telling, said


def test_fields_become_tensors_of_shape_one() -> None:
    tensors = {t.name(): t for t in input_tensors({"prompt": "é", "seed": 5, "guidance_scale": 2})}
    assert {name: (t.datatype(), t.shape()) for name, t in tensors.items()} == {
        "prompt": ("BYTES", [1]),
        "seed": ("INT64", [1]),
        "guidance_scale": ("FP32", [1]),
    }


@pytest.mark.parametrize("values", [[14.5, 3.0, 0.25], (14.5, 3.0, 0.25), np.array([14.5, 3.0, 0.25])])
@pytest.mark.parametrize("name", ["sigmas", "timesteps"])
def test_a_list_becomes_a_tensor_of_its_length(name: str, values: Any) -> None:
    (tensor,) = input_tensors({name: values})
    assert (tensor.datatype(), tensor.shape()) == ("FP32", [3])
    content = tensor._get_content()
    assert np.frombuffer(content, np.float32).tolist() == [14.5, 3.0, 0.25]


def test_one_number_is_a_list_too() -> None:
    (tensor,) = input_tensors({"sigmas": 7})
    assert tensor.shape() == [1]


@pytest.mark.parametrize(
    ("name", "pixels", "datatype", "dtype"),
    [
        ("init_pixels", np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "UINT8", np.uint8),
        ("mask_pixels", np.arange(8).reshape(2, 4).tolist(), "UINT8", np.uint8),
        ("mask_pixels", np.full((2, 4), 255), "UINT8", np.uint8),
        ("depth_map", np.linspace(0, 1, 8).reshape(2, 4), "FP32", np.float32),
        ("depth_map", Raster((2, 4), np.linspace(0, 1, 8, dtype=np.float32).tobytes()), "FP32", np.float32),
    ],
)
def test_an_array_keeps_its_shape(name: str, pixels: Any, datatype: str, dtype: Any) -> None:
    (tensor,) = input_tensors({name: pixels})
    expected = np.frombuffer(pixels.data, dtype).reshape(2, 4) if isinstance(pixels, Raster) else np.array(pixels)
    assert (tensor.datatype(), tensor.shape()) == (datatype, list(expected.shape))
    assert tensor._get_content() == expected.astype(dtype).tobytes()


def test_a_grey_picture_has_one_channel() -> None:
    (tensor,) = input_tensors({"init_pixels": np.zeros((2, 4), np.uint8)})
    assert tensor.shape() == [2, 4, 1]


def test_a_file_is_sent_as_it_is() -> None:
    (tensor,) = input_tensors({"init_image": b"\x89PNG\xff\0"})
    assert (tensor.datatype(), tensor.shape()) == ("BYTES", [1])
    assert tensor._get_content() == b"\x06\0\0\0\x89PNG\xff\0"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigmas": [1.0, "low"]}, "sigmas is .*low.*; send 1 to 500 numbers"),
        ({"sigmas": "1, 2"}, "sigmas is '1, 2'; send 1 to 500 numbers"),
        ({"sigmas": [[1.0], [0.5, 0.25]]}, "sigmas is "),
        ({"prompt": "half a pair: \ud83d"}, "prompt is "),
        ({"init_pixels": "a file's name"}, "init_pixels is .*; send an array of shape .height, width, channels"),
        ({"init_pixels": [[0.7]]}, "init_pixels is .*; send an array of shape .height, width, channels"),
        ({"mask_pixels": [[300]]}, "mask_pixels is .*; send an array of shape .height, width"),
        ({"mask_pixels": [[1, 2], [3]]}, "mask_pixels is .*; send an array of shape .height, width"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"seed": 2**70}, "seed is 1180591620717411303424"),
        ({"num_inference_steps": "many"}, "num_inference_steps is 'many'"),
    ],
)
def test_what_a_tensor_cannot_hold_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        input_tensors(fields)


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
        (said(error={"code": InvalidRequest.code, "message": "too big"}), InvalidRequest, "too big"),
        (said(error=[]), ServerError, "is not what our models send"),
        (said(colour=b"red"), ServerError, "is not what our models send"),
        (said(progress={}, preview=b"whose"), ServerError, "of which image"),
        (said(metadata=b"no object"), ServerError, "is not what our models send"),
    ],
)
def test_streams_of_other_servers_are_told(told: Any, kind: type[ServerError], words: str) -> None:
    with Telling(told) as server, Client(server.url, timeout=20) as client, pytest.raises(kind, match=words):
        client.stream(prompt="a circle")


@pytest.mark.parametrize("answer", [said(images=b"a picture"), said(metadata=[1]), said(metadata=b"{", images=b"")])
def test_answers_of_other_servers_are_told(answer: Any) -> None:
    with OddTriton(infer=lambda request: answer) as server, Client(server.url, timeout=20) as client:
        for asked in (lambda: client.generate(prompt="a circle"), lambda: client.cancel("some")):
            with pytest.raises(ServerError, match="is not what our models send"):
                asked()
