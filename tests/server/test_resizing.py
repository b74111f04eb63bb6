"""server.resizing: as diffusers' VaeImageProcessor, and what it cannot do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.fields import RESIZE_MODES, ResizeMode
from server.image import Pixels
from server.resizing import resize, to_network

SIDE = st.integers(1, 90)
SIZES = [(24, 40, 64, 64), (64, 64, 24, 40), (33, 57, 64, 128), (57, 33, 64, 128), (64, 128, 64, 128), (7, 90, 64, 64)]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_diffusers(pixels: Pixels, height: int, width: int, mode: str) -> Pixels:
    from diffusers.image_processor import VaeImageProcessor

    resized = VaeImageProcessor().resize(Image.fromarray(pixels), height, width, resize_mode=mode)
    return np.asarray(resized)


@settings(deadline=None, database=None)
@given(SIDE, SIDE, SIDE, SIDE)
def test_stretching_equals_diffusers(from_height: int, from_width: int, height: int, width: int) -> None:
    pixels = noise(from_height, from_width)
    assert np.array_equal(resize(pixels, height, width), by_diffusers(pixels, height, width, "default"))


@settings(deadline=None, database=None)
@given(SIDE, SIDE, SIDE, SIDE)
def test_cropping_equals_diffusers(from_height: int, from_width: int, height: int, width: int) -> None:
    """But for rounding: which direction Pillow scales first depends on how much of the picture it is to scale.

    Between the two it clips, so the levels here stay clear of black and white.
    """
    pixels: Pixels = (80 + noise(from_height, from_width) // 3).astype(np.uint8)
    expected = by_diffusers(pixels, height, width, "crop")
    assert np.abs(resize(pixels, height, width, mode="crop").astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("from_height", "from_width", "height", "width"), SIZES)
def test_padding_equals_diffusers_inside_the_bars(from_height: int, from_width: int, height: int, width: int) -> None:
    """In the bars diffusers overshoots: it continues the last two rows."""
    pixels = noise(from_height, from_width)
    came, expected = resize(pixels, height, width, mode="pad"), by_diffusers(pixels, height, width, "fill")
    inner_height = min(height, max(1, from_height * width // from_width))
    inner_width = min(width, max(1, from_width * height // from_height))
    top, left = height // 2 - inner_height // 2, width // 2 - inner_width // 2
    inside = np.s_[top : top + inner_height, left : left + inner_width]
    assert np.array_equal(came[inside], expected[inside])
    assert (came[:top] == came[top]).all()
    assert (came[top + inner_height :] == came[top + inner_height - 1]).all()
    assert (came[:, :left] == came[:, left : left + 1]).all()
    assert (came[:, left + inner_width :] == came[:, left + inner_width - 1 : left + inner_width]).all()


@settings(deadline=None, database=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(RESIZE_MODES), st.booleans())
def test_every_mode_gives_the_size_for_pictures_and_masks(
    from_height: int, from_width: int, height: int, width: int, mode: ResizeMode, grey: bool
) -> None:
    pixels = noise(from_height, from_width)
    came = resize(pixels[..., 0] if grey else pixels, height, width, mode=mode)
    assert came.shape == ((height, width) if grey else (height, width, 3))
    assert came.dtype == np.uint8
    assert came.flags["WRITEABLE"]


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_a_mask_lies_where_its_picture_lies(mode: ResizeMode) -> None:
    pixels = noise(45, 70)
    whole = resize(pixels, 64, 64, mode=mode)
    assert np.array_equal(resize(pixels[..., 1], 64, 64, mode=mode), whole[..., 1])


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("shape", [(8192, 1), (1, 8192)])
def test_a_long_strip_takes_no_more_than_its_result(mode: ResizeMode, shape: tuple[int, int]) -> None:
    """Scaled to cover 512x512 before it is cut, it would be 2 gigapixels."""
    assert resize(noise(*shape), 512, 512, mode=mode).shape == (512, 512, 3)


def test_a_flat_picture_stays_flat() -> None:
    flat = np.full((30, 50, 3), (10, 200, 77), np.uint8)
    for mode in RESIZE_MODES:
        assert (resize(flat, 64, 64, mode=mode) == (10, 200, 77)).all()


def test_cropping_keeps_the_middle_and_padding_keeps_all() -> None:
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255
    assert (resize(pixels, 32, 32, mode="crop") == 255).all()
    padded = resize(pixels, 96, 96, mode="pad")
    assert (padded[:, 40:56] == 255).all()
    assert (padded[:, :24] == 0).all()
    assert (padded[:, 72:] == 0).all()


@pytest.mark.parametrize("mode", ["default", "crop", "fill"])
def test_the_networks_numbers_equal_diffusers_bit_for_bit(mode: str) -> None:
    from diffusers.image_processor import VaeImageProcessor

    pixels = noise(45, 70)
    expected = VaeImageProcessor().preprocess(Image.fromarray(pixels), 64, 48, resize_mode=mode)[0].numpy()
    came = to_network(by_diffusers(pixels, 64, 48, mode))
    assert np.array_equal(came, expected)
    assert came.dtype == np.float32
    assert came.flags["C_CONTIGUOUS"]


def test_every_level_equals_diffusers_bit_for_bit() -> None:
    from diffusers.image_processor import VaeImageProcessor

    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    assert np.array_equal(to_network(levels), VaeImageProcessor().preprocess(Image.fromarray(levels))[0].numpy())
    assert (to_network(levels).min(), to_network(levels).max()) == (-1, 1)
