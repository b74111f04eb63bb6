"""server.image: rounding as diffusers rounds, and pictures that any reader opens."""

import base64
import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from server.fields import MAX_PROMPT_BYTES, OUTPUT_FORMATS
from server.image import OPTIONS, Pixels, encode_image, to_pixels

TEXTS = {"parameters": 'a red circle\nSteps: 20, Model: "größer 🙂"', "aquatint": '{"prompt": "a red circle"}'}


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
    image = Image.open(io.BytesIO(encode_image(picture(), output_format, "binary", TEXTS)))
    assert image.format == output_format.upper()
    assert (image.size, image.mode) == ((40, 24), "RGB")
    assert np.abs(np.asarray(image).astype(int) - picture()).mean() <= furthest


def test_raw_is_rgb_row_by_row() -> None:
    data = encode_image(picture(), "raw", "binary", TEXTS)
    assert np.array_equal(np.frombuffer(data, np.uint8).reshape(24, 40, 3), picture())


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_base64_holds_the_same_bytes_in_one_line_of_ascii(output_format: str) -> None:
    text = encode_image(picture(), output_format, "base64", TEXTS)
    assert base64.b64decode(text, validate=True) == encode_image(picture(), output_format, "binary", TEXTS)
    assert text.isascii()
    assert b"\n" not in text


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_the_same_pixels_give_the_same_bytes(output_format: str) -> None:
    first, second = (encode_image(pixels, output_format, "binary", TEXTS) for pixels in (picture(), picture().copy()))
    assert first == second


def test_every_format_that_may_be_asked_for_can_be_written() -> None:
    assert {*OPTIONS, "raw"} == set(OUTPUT_FORMATS)


def noted(output_format: str, texts: Mapping[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(encode_image(picture(), output_format, "binary", texts)))


def user_comment(image: Image.Image) -> bytes | None:
    comment: bytes | None = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    return comment


@pytest.mark.parametrize(
    "text", ["", "plain", "two\nlines\ttab", "größer", "蓝色 🙂", "a\x00b", "é\x00b", "x" * 100_000]
)
def test_a_png_has_every_text_under_its_key(text: str) -> None:
    texts = {"parameters": text, "aquatint": "{}", "other": text[::-1]}
    info = noted("png", texts).info
    assert {key: info[key] for key in texts} == texts


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
@pytest.mark.parametrize("text", ["plain", "two\nlines", "größer 蓝色 🙂"])
def test_the_first_text_is_the_exif_user_comment_of_other_formats(output_format: str, text: str) -> None:
    comment = user_comment(noted(output_format, {"parameters": text, "aquatint": "{}"}))
    assert comment is not None
    assert (comment[:8], comment[8:].decode("utf-16be")) == (b"UNICODE\0", text)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_texts_do_not_change_the_picture_and_may_be_absent(output_format: str) -> None:
    with_texts, without = noted(output_format, TEXTS), noted(output_format, {})
    assert np.array_equal(np.asarray(with_texts), np.asarray(without))
    assert not {*TEXTS} & without.info.keys()
    assert user_comment(without) is None


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_is_written_whatever_the_prompts_length(output_format: str) -> None:
    """A prompt and a negative prompt of the greatest length are more than JPEG's EXIF can hold as UTF-16."""
    longest = f"{'x' * MAX_PROMPT_BYTES}\nNegative prompt: {'y' * MAX_PROMPT_BYTES}\nSteps: 20"
    assert noted(output_format, {"parameters": longest}).size == (40, 24)
