"""The client's side of a request; what a server answers is tested with the real one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.client import Result, input_tensors
from server.errors import InvalidRequest
from server.image import encode_image


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
    ("fields", "message"),
    [
        ({"sigmas": [1.0, "low"]}, "sigmas is .*low.*; send 1 to 500 numbers"),
        ({"sigmas": "1, 2"}, "sigmas is '1, 2'; send 1 to 500 numbers"),
        ({"sigmas": [[1.0], [0.5, 0.25]]}, "sigmas is "),
        ({"prompt": "half a pair: \ud83d"}, "prompt is "),
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
    result = Result([data], {"request": {"output_format": output_format, "height": 8, "width": 16}})
    assert np.array_equal(result.pixels()[0], picture)
