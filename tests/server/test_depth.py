"""server.depth against transformers' image processor and diffusers' depth2img arithmetic."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.depth import checked_depth, depth_channel, estimator_input, picture_depth
from server.errors import InvalidRequest
from server.noise import Float32Array, TorchGenerator

SIZES = [(8, 8), (64, 48), (96, 128)]


def drawn_depth(h: int = 96, w: int = 80) -> Float32Array:
    """A slope with two things in front of it."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    depth: Float32Array = 3 + y / h
    depth[(y - h / 3) ** 2 + (x - w / 4) ** 2 < (h / 6) ** 2] = 7.5
    depth[h // 2 : h // 2 + h // 4, w // 2 : w // 2 + w // 3] = 5
    return depth


def in_diffusers(depth: Float32Array, size: tuple[int, int]) -> Float32Array:
    """What `prepare_depth_map` does."""
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(depth)[None, None], size=size, mode="bicubic", align_corners=False
    )
    low, high = resized.amin(), resized.amax()
    channel: Float32Array = (2 * (resized - low) / (high - low) - 1)[0].numpy()
    return channel


@pytest.mark.parametrize("shape", [(300, 200), (64, 500), (384, 384), (37, 41)])
@pytest.mark.parametrize("side", [384, 32])
def test_the_estimators_input_equals_transformers(shape: tuple[int, int], side: int) -> None:
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = DPTImageProcessorPil(size={"height": side, "width": side})
    reference = processor(images=Image.fromarray(pixels), return_tensors="np").pixel_values
    ours = estimator_input(pixels, side)
    assert ours.shape == (1, 3, side, side)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("size", SIZES)
def test_the_channel_equals_diffusers(size: tuple[int, int]) -> None:
    ours = depth_channel(drawn_depth(), size)
    assert ours.shape == (1, *size)
    assert (ours.min(), ours.max()) == (-1, 1)
    np.testing.assert_allclose(ours, in_diffusers(drawn_depth(), size), rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 1e5), st.floats(-100, 100), st.sampled_from(SIZES))
def test_another_unit_gives_the_same_channel(a: float, b: float, size: tuple[int, int]) -> None:
    # float32 cannot hold a small slope on a large offset any better.
    b *= a
    other = (a * drawn_depth().astype(np.float64) + b).astype(np.float32)
    np.testing.assert_allclose(depth_channel(other, size), depth_channel(drawn_depth(), size), rtol=0, atol=3e-5)


def test_inverting_is_the_negative_depth() -> None:
    inverted = depth_channel(drawn_depth(), (32, 24), invert=True)
    np.testing.assert_array_equal(inverted, -depth_channel(drawn_depth(), (32, 24)))
    np.testing.assert_allclose(inverted, depth_channel(-drawn_depth(), (32, 24)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.1, 65535.0, 1e30, 1e-30])
@pytest.mark.parametrize("invert", [False, True])
def test_a_flat_map_is_zero(value: float, invert: bool) -> None:
    channel = depth_channel(np.full((37, 53), value, np.float32), (64, 64), invert)
    np.testing.assert_array_equal(channel, 0)


def test_rounding_errors_of_a_flat_map_are_not_depth() -> None:
    depth = np.full((40, 40), 0.3, np.float32)
    depth[::2] = np.nextafter(np.float32(0.3), np.float32(1))
    np.testing.assert_array_equal(depth_channel(depth, (8, 8)), 0)


def test_a_map_that_is_flat_where_it_is_sampled_is_zero() -> None:
    """Bicubic without antialiasing sees the same phase of this pattern everywhere, as diffusers does."""
    depth = np.zeros((64, 64), np.float32)
    depth[:, 0::8] = 1
    channel = depth_channel(depth, (8, 8))
    assert np.isfinite(channel).all()
    np.testing.assert_array_equal(channel, 0)


def test_depths_of_float32s_whole_range_are_finite() -> None:
    depth = np.zeros((16, 16), np.float32)
    depth[:8], depth[8:] = -3e38, 3e38
    channel = depth_channel(depth, (8, 8))
    assert (channel.min(), channel.max()) == (-1, 1)


def test_a_map_of_its_own_is_not_changed() -> None:
    depth = drawn_depth()
    depth_channel(depth, (8, 8), invert=True)
    np.testing.assert_array_equal(depth, drawn_depth())


def opened(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return Image.open(stream)


def test_sixteen_bits_are_kept() -> None:
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    np.testing.assert_array_equal(picture_depth(opened(Image.fromarray(values))), values)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_grey_pictures_of_any_mode_are_read(mode: str) -> None:
    values = np.full((20, 30), 255, np.uint8)
    values[5:9, 3:20] = 0
    depth = picture_depth(opened(Image.fromarray(values).convert(mode)))
    np.testing.assert_array_equal(depth, values)


def test_colours_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"colours \(mode RGB\).*grey PNG"):
        picture_depth(Image.new("RGB", (8, 8), (10, 20, 30)))


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (6, 5, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32", "float64"])
def test_arrays_of_numbers_are_taken(shape: tuple[int, ...], dtype: str) -> None:
    depth = checked_depth(np.arange(30).reshape(shape).astype(dtype))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, np.arange(30).reshape(6, 5))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([[1.0, np.nan]]), "1 of 2 values that are NaN or infinite"),
        (np.array([[np.inf, np.nan]], np.float32), "2 of 2"),
        (np.array([[1e300, 0.0]]), "1 of 2"),
        (np.zeros((4, 4, 3), np.float32), r"shape \[4, 4, 3\]"),
        (np.zeros(16, np.float32), r"shape \[16\]"),
        (np.zeros((0, 4), np.float32), r"shape \[0, 4\]"),
        (np.zeros((4, 4), bool), "type bool"),
        (np.zeros((4, 4), complex), "type complex128"),
        (np.array([["near"]]), "type <U4"),
    ],
)
def test_what_is_no_depth_is_refused(values: npt.NDArray[Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{told}.*float32 array"):
        checked_depth(values)


def test_noise_of_any_kind_stays_in_range() -> None:
    for seed in range(20):
        channel = depth_channel(TorchGenerator(seed).normal((50, 60)), (16, 16))
        assert (channel.min(), channel.max()) == (-1, 1)
