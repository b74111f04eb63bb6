"""Requests in the protocol's form; what a server answers is tested with the real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from server.errors import InvalidRequest, NotFound, Overloaded, ServerError
from server.fields import Raster, Value
from server.protocol import Disconnected, message_of, stream_message, translated


def sent(fields: Mapping[str, Value]) -> tuple[str, list[int], bytes]:
    """Type, shape and content of the one tensor of a request."""
    message = message_of("model", fields)
    (tensor,), (content,) = message.inputs, message.raw_input_contents
    return tensor.datatype, list(tensor.shape), content


def test_fields_become_tensors_of_shape_one() -> None:
    message = message_of("model", {"prompt": "é", "seed": 5, "guidance_scale": 2})
    assert message.model_name == "model"
    assert {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in message.inputs} == {
        "prompt": ("BYTES", [1]),
        "seed": ("INT64", [1]),
        "guidance_scale": ("FP32", [1]),
    }


def test_a_batched_model_has_a_dimension_more() -> None:
    (tensor,) = message_of("model", {"seed": 5}, batched=True).inputs
    assert list(tensor.shape) == [1, 1]


def test_a_stream_asks_for_failures_as_data() -> None:
    assert stream_message({"prompt": "x"}).parameters["errors_as_data"].bool_param


@pytest.mark.parametrize("values", [[14.5, 3.0, 0.25], (14.5, 3.0, 0.25), np.array([14.5, 3.0, 0.25])])
@pytest.mark.parametrize("name", ["sigmas", "timesteps"])
def test_a_list_becomes_a_tensor_of_its_length(name: str, values: Any) -> None:
    datatype, shape, content = sent({name: values})
    assert (datatype, shape) == ("FP32", [3])
    assert np.frombuffer(content, np.float32).tolist() == [14.5, 3.0, 0.25]


def test_one_number_is_a_list_too() -> None:
    assert sent({"sigmas": 7})[1] == [1]


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
    found, shape, content = sent({name: pixels})
    expected = np.frombuffer(pixels.data, dtype).reshape(2, 4) if isinstance(pixels, Raster) else np.array(pixels)
    assert (found, shape) == (datatype, list(expected.shape))
    assert content == expected.astype(dtype).tobytes()


def test_a_grey_picture_has_one_channel() -> None:
    assert sent({"init_pixels": np.zeros((2, 4), np.uint8)})[1] == [2, 4, 1]


def test_a_file_is_sent_as_it_is() -> None:
    datatype, shape, content = sent({"init_image": b"\x89PNG\xff\0"})
    assert (datatype, shape) == ("BYTES", [1])
    assert content == b"\x06\0\0\0\x89PNG\xff\0"


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
        message_of("model", fields)


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        ("INVALID_ARGUMENT", "seed is -2", InvalidRequest),
        ("UNAVAILABLE", "the queue is full", Overloaded),
        ("UNAVAILABLE", "failed to connect to all addresses", Disconnected),
        ("UNAVAILABLE", "Socket closed", Disconnected),
        ("NOT_FOUND", "no such request", NotFound),
        ("INTERNAL", "broken", ServerError),
    ],
)
def test_failures_of_grpc_are_ours(status: str, words: str, kind: type[ServerError]) -> None:
    error = translated(status, words)
    assert type(error) is kind
    assert words in str(error)
