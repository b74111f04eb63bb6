"""server.only_masked: diffusers' region, and a way back that touches nothing else."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from server.image import Pixels
from server.only_masked import Box, crop_region, cut_out, paste_back, whole_box
from server.resizing import resize, to_network

SIDE = st.integers(1, 80)


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def blurred_box(height: int, width: int, box: Box, blur: float) -> Pixels:
    mask = np.zeros((height, width), np.uint8)
    mask[box.top : box.bottom, box.left : box.right] = 255
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(blur)))


@settings(deadline=None, database=None, max_examples=400)
@given(SIDE, SIDE, st.integers(0, 2**32 - 1), st.integers(0, 90), st.integers(1, 20), st.integers(1, 20))
def test_the_region_equals_diffusers(height: int, width: int, seed: int, padding: int, down: int, across: int) -> None:
    from diffusers.image_processor import VaeImageProcessor

    generator = np.random.default_rng(seed)
    mask = (generator.random((height, width)) < generator.choice([0.001, 0.01, 0.5])).astype(np.uint8)
    assume(mask.any())
    expected = VaeImageProcessor.get_crop_region(Image.fromarray(mask), across * 8, down * 8, pad=padding)
    box = crop_region(mask, padding, down * 8, across * 8)
    assert box == expected
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.top < box.bottom <= height
    outside = mask.copy()
    outside[box.top : box.bottom, box.left : box.right] = 0
    assert not outside.any()


def test_the_region_is_padded_and_widened_to_the_drawn_proportions() -> None:
    mask = np.zeros((200, 300), np.uint8)
    mask[90:110, 140:160] = 1
    assert crop_region(mask, 0, 512, 512) == (140, 90, 160, 110)
    assert crop_region(mask, 5, 512, 512) == (135, 85, 165, 115)
    assert crop_region(mask, 0, 512, 1024) == (130, 90, 170, 110)
    assert crop_region(mask, 0, 1024, 512) == (140, 80, 160, 120)
    assert crop_region(mask, 150, 512, 512) == (0, 0, 300, 200)


def test_a_cut_out_has_the_drawn_size_and_mask_and_picture_stay_together() -> None:
    pixels = noise(90, 120, 3)
    box = Box(10, 20, 70, 60)
    cut = cut_out(pixels, box, 64, 96)
    assert cut.shape == (64, 96, 3)
    assert np.array_equal(cut, resize(pixels[20:60, 10:70], 64, 96, mode="pad"))
    assert np.array_equal(cut_out(pixels[..., 2], box, 64, 96), cut[..., 2])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 128), (128, 64)])
def test_what_the_network_is_shown_of_a_region_equals_diffusers(height: int, width: int) -> None:
    """Bit for bit where the region has the drawn proportions; see server.resizing for the bars where it has not."""
    from diffusers.image_processor import VaeImageProcessor

    pixels, mask = noise(150, 170, 3), np.zeros((150, 170), np.uint8)
    mask[70:90, 80:100] = 255
    processor = VaeImageProcessor()
    region = processor.get_crop_region(Image.fromarray(mask), width, height, pad=6)
    expected = processor.preprocess(Image.fromarray(pixels), height, width, resize_mode="fill", crops_coords=region)
    came = to_network(cut_out(pixels, crop_region(mask, 6, height, width), height, width))
    assert np.array_equal(came, expected[0].numpy())


@settings(deadline=None, database=None)
@given(st.integers(8, 80), st.integers(8, 80), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 4]), st.integers(0, 9))
def test_what_the_mask_leaves_comes_back_bit_for_bit(
    height: int, width: int, seed: int, blur: float, padding: int
) -> None:
    generator = np.random.default_rng(seed)
    left, top = int(generator.integers(0, width)), int(generator.integers(0, height))
    inner = Box(left, top, int(generator.integers(left, width)) + 1, int(generator.integers(top, height)) + 1)
    mask = blurred_box(height, width, inner, blur)
    assume(mask.any())
    original, generated = noise(height, width, 3, seed=seed), noise(64, 64, 3, seed=seed + 1)
    before = original.copy()
    box = crop_region(mask, padding, 64, 64)
    back = paste_back(original, generated, box, mask)
    assert np.array_equal(back[mask == 0], original[mask == 0])
    drawn = np.zeros_like(original)
    drawn[box.top : box.bottom, box.left : box.right] = resize(generated, box.height, box.width, mode="crop")
    assert np.array_equal(back[mask == 255], drawn[mask == 255])
    share = mask[..., None] / 255
    assert np.abs(back - (drawn * share + original * (1 - share))).max() <= 1
    assert np.array_equal(original, before)


def test_outside_the_box_nothing_changes_whatever_the_mask_says() -> None:
    original = noise(40, 50, 3)
    back = paste_back(original, noise(16, 16, 3, seed=1), Box(10, 10, 26, 26), np.full((40, 50), 255, np.uint8))
    changed = (back != original).any(-1)
    assert changed[10:26, 10:26].any()
    changed[10:26, 10:26] = False
    assert not changed.any()


@pytest.mark.parametrize("blur", [0, 4])
def test_pasting_back_is_near_diffusers_overlay(blur: float) -> None:
    """It mixes through premultiplied 8-bit colours, which costs some levels where little of the original is left."""
    from diffusers.image_processor import VaeImageProcessor

    original, generated = noise(90, 120, 3), noise(64, 64, 3, seed=1)
    mask = blurred_box(90, 120, Box(40, 30, 70, 60), blur)
    box = crop_region(mask, 8, 64, 64)
    expected = np.asarray(
        VaeImageProcessor().apply_overlay(
            Image.fromarray(mask), Image.fromarray(original), Image.fromarray(generated), box
        )
    )
    apart = np.abs(paste_back(original, generated, box, mask).astype(int) - expected)
    assert apart.max() <= 3
    assert apart[(mask == 0) | (mask == 255)].max() <= (0 if blur == 0 else 1)


def test_the_whole_picture_is_a_box_too() -> None:
    original, generated, mask = noise(24, 40, 3), noise(24, 40, 3, seed=1), noise(24, 40, seed=2)
    assert whole_box(original) == (0, 0, 40, 24)
    mask[::2] = np.where(mask[::2] < 128, 0, 255)
    back = paste_back(original, generated, whole_box(mask), mask)
    assert np.array_equal(back[mask == 255], generated[mask == 255])
    assert np.array_equal(back[mask == 0], original[mask == 0])
