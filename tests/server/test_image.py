"""server.image: rounding as diffusers rounds, and pictures that any reader opens."""

import base64
import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from server.image import OPTIONS, Pixels, encode_image, to_pixels
from server.request import OUTPUT_FORMATS


def decoded(seed: int = 0, height: int = 24, width: int = 40) -> npt.NDArray[np.float32]:
    """What a VAE decoder might give, partly out of range."""
    return np.random.default_rng(seed).normal(0, 0.8, (2, 3, height, width)).astype(np.float32)


def picture() -> Pixels:
    """Smooth, with a different ramp per channel, and not square."""
    row, column = np.mgrid[0:24, 0:40]
    values: Pixels = np.stack([row * 10, column * 6, 255 - row * 5 - column * 3], axis=-1).astype(np.uint8)
    return values


def test_pixels_equal_diffusers() -> None:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    torch.set_num_threads(1)
    values = decoded()
    expected = VaeImageProcessor().postprocess(torch.from_numpy(values), output_type="pil")
    assert np.array_equal(to_pixels(values), np.stack([np.asarray(image) for image in expected]))


@pytest.mark.parametrize(
    ("value", "pixel"),
    [
        (-1, 0),
        (1, 255),
        (-1.5, 0),
        (7, 255),
        (float("-inf"), 0),
        (float("inf"), 255),
        (0, 128),
        (2 * 100.4 / 255 - 1, 100),
        (2 * 100.6 / 255 - 1, 101),
        (2 * 254.6 / 255 - 1, 255),
        (2 * 0.4 / 255 - 1, 0),
    ],
)
def test_a_value_is_clipped_and_rounded_to_the_nearest_pixel(value: float, pixel: int) -> None:
    assert to_pixels(np.full((1, 3, 1, 1), value, np.float32)).tolist() == [[[[pixel] * 3]]]


def test_channels_come_last_and_rows_stay_rows() -> None:
    values = decoded()
    pixels = to_pixels(values)
    assert pixels.shape == (2, 24, 40, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    for image, channel, row, column in [(0, 0, 3, 7), (1, 2, 23, 39), (0, 1, 0, 20)]:
        expected = round(min(max(float(values[image, channel, row, column]) / 2 + 0.5, 0), 1) * 255)
        assert pixels[image, row, column, channel] == expected


def test_what_was_decoded_is_left_as_it_was() -> None:
    values = decoded()
    to_pixels(values)
    assert np.array_equal(values, decoded())


@pytest.mark.parametrize(("output_format", "furthest"), [("png", 0), ("jpeg", 6), ("webp", 6)])
def test_an_encoded_picture_opens_in_its_size_and_colours(output_format: str, furthest: int) -> None:
    image = Image.open(io.BytesIO(encode_image(picture(), output_format, "binary")))
    assert image.format == output_format.upper()
    assert (image.size, image.mode) == ((40, 24), "RGB")
    assert np.abs(np.asarray(image).astype(int) - picture()).mean() <= furthest


def test_raw_is_rgb_row_by_row() -> None:
    data = encode_image(picture(), "raw", "binary")
    assert np.array_equal(np.frombuffer(data, np.uint8).reshape(24, 40, 3), picture())


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_base64_holds_the_same_bytes_in_one_line_of_ascii(output_format: str) -> None:
    text = encode_image(picture(), output_format, "base64")
    assert base64.b64decode(text, validate=True) == encode_image(picture(), output_format, "binary")
    assert text.isascii()
    assert b"\n" not in text


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_the_same_pixels_give_the_same_bytes(output_format: str) -> None:
    assert encode_image(picture(), output_format, "binary") == encode_image(picture().copy(), output_format, "binary")


def test_every_format_that_may_be_asked_for_can_be_written() -> None:
    assert {*OPTIONS, "raw"} == set(OUTPUT_FORMATS)
