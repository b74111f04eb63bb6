"""server.masks: diffusers' masks, greys that are kept, and holes that are filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.errors import InvalidRequest
from server.image import Pixels
from server.masks import binarised, fill_masked, latent_mask, masked_picture, prepare_mask
from server.resizing import resize, to_network


def disc(height: int = 64, width: int = 96, radius: float = 20) -> Pixels:
    """White inside, black outside."""
    row, column = np.mgrid[0:height, 0:width]
    inside = (row - height / 2) ** 2 + (column - width / 2) ** 2 < radius**2
    mask: Pixels = (inside * 255).astype(np.uint8)
    return mask


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_a_mask_is_left_as_it_is_unless_asked() -> None:
    mask = noise(64, 96)
    assert np.array_equal(prepare_mask(mask, (64, 96)), mask)


def test_inverting_swaps_what_is_repainted() -> None:
    mask = disc()
    before = mask.copy()
    assert np.array_equal(prepare_mask(mask, (64, 96), invert=True), 255 - mask)
    assert np.array_equal(mask, before)


@pytest.mark.parametrize("blur", [1, 4, 4.5, 33])
@pytest.mark.parametrize("invert", [False, True])
def test_blurring_equals_diffusers_after_inverting(blur: float, invert: bool) -> None:
    from diffusers.image_processor import VaeImageProcessor

    mask = disc()
    inverted = Image.fromarray(255 - mask if invert else mask)
    expected = VaeImageProcessor.blur(inverted, blur)
    assert np.array_equal(prepare_mask(mask, (64, 96), invert=invert, blur=blur, soft=True), np.asarray(expected))


@pytest.mark.parametrize("size", [(96, 64), (64, 95), (512, 512)])
def test_a_mask_of_another_size_is_refused(size: tuple[int, int]) -> None:
    expected = f"mask_image has width 96 and height 64, init_image width {size[1]} and height {size[0]}; send a mask of"
    with pytest.raises(InvalidRequest, match=expected):
        prepare_mask(disc(), size)


@pytest.mark.parametrize(
    ("grey", "invert", "soft", "message"),
    [
        (0, False, False, "darker than 128 of 255 everywhere, so nothing would change; paint white where"),
        (127, False, False, "darker than 128 of 255 everywhere, so nothing would change"),
        (255, True, False, "inverted, darker than 128 of 255 everywhere, so nothing would change"),
        (128, True, False, "inverted, darker than 128 of 255 everywhere, so nothing would change"),
        (0, False, True, "black everywhere, so nothing would change"),
        (255, True, True, "inverted, black everywhere, so nothing would change"),
        (255, False, False, "128 of 255 or lighter everywhere, so nothing of the picture would stay; leave mask_image"),
        (128, False, False, "128 of 255 or lighter everywhere, so nothing of the picture would stay"),
        (0, True, False, "inverted, 128 of 255 or lighter everywhere, so nothing of the picture would stay"),
        (255, False, True, "white everywhere, so nothing of the picture would stay"),
    ],
)
def test_a_mask_of_nothing_or_everything_is_refused(grey: int, invert: bool, soft: bool, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"mask_image is, {message}"):
        prepare_mask(np.full((8, 9), grey, np.uint8), (8, 9), invert=invert, soft=soft)


@pytest.mark.parametrize("grey", [1, 127, 128, 254])
def test_an_even_grey_is_a_soft_mask(grey: int) -> None:
    mask = np.full((8, 9), grey, np.uint8)
    assert np.array_equal(prepare_mask(mask, (8, 9), soft=True), mask)


def test_a_line_that_a_blur_wipes_out_is_refused_with_the_blur() -> None:
    line = np.zeros((64, 64), np.uint8)
    line[32] = 255
    with pytest.raises(InvalidRequest, match=r"blurred by 4 px, darker than .* nothing would change; lower mask_blur"):
        prepare_mask(line, (64, 64), blur=4)
    assert prepare_mask(line, (64, 64), blur=4, soft=True).max() > 0


def test_from_half_on_a_pixel_is_repainted_as_in_diffusers() -> None:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    expected = processor.preprocess(Image.fromarray(levels))
    assert expected.dtype == torch.float32
    assert np.array_equal(binarised(levels), expected[0, 0].numpy())
    assert binarised(levels).sum() == 128


@settings(deadline=None, database=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 100), st.integers(1, 100))
def test_the_latents_hard_mask_equals_torchs(height: int, width: int, latent_height: int, latent_width: int) -> None:
    import torch

    mask = noise(height, width)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(binarised(mask))[None, None], size=(latent_height, latent_width)
    )
    came = latent_mask(mask, latent_height, latent_width)
    assert np.array_equal(came, expected[0].numpy())
    assert came.dtype == np.float32


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (32, 96)])
def test_a_mask_on_its_way_to_the_latents_equals_diffusers(height: int, width: int) -> None:
    import torch
    from diffusers.image_processor import VaeImageProcessor

    mask = prepare_mask(disc(57, 91), (57, 91), blur=3)
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    whole = processor.preprocess(Image.fromarray(mask), height, width)
    expected = torch.nn.functional.interpolate(whole, size=(height // 8, width // 8))
    drawn = resize(mask, height, width)
    assert np.array_equal(binarised(drawn), whole[0, 0].numpy())
    assert np.array_equal(latent_mask(drawn, height // 8, width // 8), expected[0].numpy())


def test_the_latents_soft_mask_is_the_mean_of_what_each_covers() -> None:
    mask = noise(64, 96)
    came = latent_mask(mask, 8, 12, soft=True)
    assert came.shape == (1, 8, 12)
    assert np.abs(came[0] - mask.reshape(8, 8, 12, 8).mean((1, 3)) / 255).max() < 1e-6
    assert (latent_mask(np.full((64, 96), 255, np.uint8), 8, 12, soft=True) == 1).all()
    assert (latent_mask(np.zeros((64, 96), np.uint8), 8, 12, soft=True) == 0).all()


def test_a_hidden_picture_equals_diffusers() -> None:
    import torch

    picture, mask = to_network(noise(64, 96, 3)), noise(64, 96, seed=1)
    expected = torch.from_numpy(picture) * (torch.from_numpy(binarised(mask))[None] < 0.5)
    came = masked_picture(picture, mask)
    assert np.array_equal(came, expected.numpy())
    assert (came[:, mask >= 128] == 0).all()
    assert np.array_equal(came[:, mask < 128], picture[:, mask < 128])


@pytest.mark.parametrize("mask", [disc(), disc(radius=3), 255 - disc(), disc(radius=60)])
def test_filling_leaves_what_stays_bit_for_bit(mask: Pixels) -> None:
    pixels = noise(64, 96, 3)
    filled = fill_masked(pixels, mask)
    assert np.array_equal(filled[mask == 0], pixels[mask == 0])


def test_a_hole_is_filled_with_the_colour_around_it() -> None:
    pixels = np.full((64, 96, 3), (200, 100, 50), np.uint8)
    pixels[disc() > 0] = (0, 0, 255)
    apart = np.abs(fill_masked(pixels, disc()).astype(int) - (200, 100, 50))
    # Colours are blurred in 8 bits, times how much of them stays.
    assert apart.max() <= 8
    assert apart.mean() < 0.3


def test_each_side_of_a_hole_takes_the_colour_of_that_side() -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 48:] = 255
    filled = fill_masked(pixels, disc())[32, :, 0].astype(int)
    assert (filled[28:34] < 50).all()
    assert (filled[62:68] > 205).all()
    assert (np.diff(filled) >= 0).all()
    assert np.diff(filled).max() <= 20


def test_where_a_mask_is_grey_the_picture_shows_through() -> None:
    pixels, mask = np.full((64, 96, 3), 60, np.uint8), disc()
    pixels[mask > 0] = 220
    grey = np.where(mask > 0, 128, 0).astype(np.uint8)
    centre = int(fill_masked(pixels, grey)[32, 48, 0])
    assert int(fill_masked(pixels, mask)[32, 48, 0]) < 70 < centre < 220


@pytest.mark.parametrize("level", [0, 255])
def test_filling_all_or_nothing_needs_no_special_care(level: int) -> None:
    pixels = noise(16, 24, 3)
    filled = fill_masked(pixels, np.full((16, 24), level, np.uint8))
    assert np.array_equal(filled, pixels if level == 0 else np.full_like(pixels, 128))


def test_filling_does_not_see_under_the_mask() -> None:
    pixels, other, mask = noise(64, 96, 3), noise(64, 96, 3, seed=1), disc()
    other[mask == 0] = pixels[mask == 0]
    assert np.array_equal(fill_masked(pixels, mask), fill_masked(other, mask))
