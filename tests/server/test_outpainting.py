"""server.outpainting: canvases of the asked size that keep the picture, and masks that keep it too."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.fields import EXTEND_FILLS, Fill
from server.image import Pixels
from server.masks import prepare_mask
from server.only_masked import paste_back, whole_box
from server.outpainting import Extension, extend, matched_noise
from server.picture_files import PictureLimits

LIMITS = PictureLimits()
AMOUNT = st.integers(0, 60)


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def textured(height: int = 96, width: int = 128) -> Pixels:
    """Stripes of a known wave, reddish, with some noise: mean and spectrum far from even."""
    column = np.arange(width)[None, :, None]
    stripes = 128 + 50 * np.sin(2 * np.pi * column / 8) * np.array([1, 0.5, 0.2]) + np.array([40, 0, -30])
    grain = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    pixels: Pixels = np.clip(stripes + grain, 0, 255).astype(np.uint8)
    return pixels


@settings(deadline=None, database=None)
@given(
    st.integers(1, 50),
    st.integers(1, 50),
    AMOUNT,
    AMOUNT,
    AMOUNT,
    AMOUNT,
    st.sampled_from(EXTEND_FILLS),
    st.integers(0, 20),
)
def test_the_canvas_is_as_large_as_its_parts_and_keeps_the_picture(
    height: int, width: int, left: int, right: int, top: int, bottom: int, fill: Fill, feather: int
) -> None:
    pixels = noise(height, width, 3)
    extension = Extension(left, right, top, bottom)
    sides = [side for side, room in ((height, top + bottom), (width, left + right)) if room]
    assume(sides and 2 * feather < min(sides))
    canvas, mask = extend(pixels, extension, LIMITS, fill=fill, feather=feather)
    assert canvas.shape == (height + top + bottom, width + left + right, 3)
    assert mask.shape == canvas.shape[:2]
    assert (canvas.dtype.name, mask.dtype.name) == ("uint8", "uint8")
    inside = np.s_[top : top + height, left : left + width]
    assert np.array_equal(canvas[inside], pixels)
    outside = np.ones(mask.shape, bool)
    outside[inside] = False
    assert (mask[outside] == 255).all()
    assert (mask[inside] < 255).all()
    assert (mask[inside] == 0).any()
    assert np.array_equal(prepare_mask(mask, (mask.shape[0], mask.shape[1])), mask)
    drawn = noise(*canvas.shape, seed=1)
    back = paste_back(canvas, drawn, whole_box(canvas), mask)
    assert np.array_equal(back[mask == 0], canvas[mask == 0])
    assert np.array_equal(back[outside], drawn[outside])


def test_the_mask_fades_evenly_along_the_extended_sides_only() -> None:
    _, mask = extend(noise(30, 40, 3), Extension(left=16, bottom=8), LIMITS, feather=4)
    assert mask[0, :24].tolist() == [255] * 16 + [204, 153, 102, 51] + [0] * 4
    assert mask[::-1, -1][:16].tolist() == [255] * 8 + [204, 153, 102, 51] + [0] * 4
    assert (mask[:26, 20:] == 0).all()
    # Where two fades meet, the stronger one holds.
    assert mask[29, 17] == 204
    assert mask[27, 16] == 204


def test_without_a_feather_the_mask_is_hard() -> None:
    _, mask = extend(noise(30, 40, 3), Extension(8, 8, 8, 8), LIMITS, feather=0)
    assert sorted(set(mask.ravel().tolist())) == [0, 255]
    assert (mask == 0).sum() == 30 * 40


def test_edges_are_repeated() -> None:
    pixels = noise(5, 6, 3)
    canvas, _ = extend(pixels, Extension(3, 2, 4, 1), LIMITS, fill="edge", feather=0)
    assert (canvas[4:9, :3] == pixels[:, :1]).all()
    assert (canvas[4:9, 9:] == pixels[:, -1:]).all()
    assert (canvas[:4, 3:9] == pixels[0]).all()
    assert (canvas[:4, :3] == pixels[0, 0]).all()
    assert (canvas[9:, 9:] == pixels[-1, -1]).all()


def test_mirrors_reflect_as_often_as_needed() -> None:
    pixels = noise(5, 6, 3)
    canvas, _ = extend(pixels, Extension(6, 12, 5, 0), LIMITS, fill="mirror", feather=0)
    assert np.array_equal(canvas[5:, :6], pixels[:, ::-1])
    assert np.array_equal(canvas[:5, 6:12], pixels[::-1])
    assert np.array_equal(canvas[5:, 12:18], pixels[:, ::-1])
    assert np.array_equal(canvas[5:, 18:], pixels)


def test_grey_is_grey() -> None:
    canvas, mask = extend(noise(5, 6, 3), Extension(top=8), LIMITS, fill="grey", feather=0)
    assert (canvas[mask == 255] == 128).all()


def test_noise_has_the_pictures_mean_deviation_and_spectrum() -> None:
    pixels = textured()
    made = matched_noise(pixels, 256, 256, 1)
    assert np.abs(made.mean((0, 1)) - pixels.mean((0, 1))).max() < 2
    assert np.abs(made.std((0, 1)) / pixels.std((0, 1)) - 1).max() < 0.1
    power = np.abs(np.fft.rfft2(made[..., 0] - made[..., 0].mean())) ** 2
    # A wave of 8 pixels is the 32nd of 256; the picture's window spreads it over its neighbours.
    assert power[:, 28:37].sum() / power.sum() > 0.7


def test_noise_keeps_colours_together() -> None:
    """Red and green rise and fall together in the picture, so they do in its noise."""
    made = matched_noise(textured(), 256, 256, 1)
    assert np.corrcoef(made[..., 0].ravel(), made[..., 1].ravel())[0, 1] > 0.9


def test_noise_is_the_seeds_own_and_has_no_seam() -> None:
    pixels = textured()
    first, again, other = (matched_noise(pixels, 160, 160, seed) for seed in (2**40 + 7, 2**40 + 7, 7))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    steps = np.abs(np.diff(first.astype(int), axis=1)).mean()
    assert np.abs(first[:, 0].astype(int) - first[:, -1]).mean() < 2 * steps


def test_noise_of_a_flat_picture_is_its_colour() -> None:
    canvas, _ = extend(
        np.full((9, 9, 3), (10, 200, 77), np.uint8), Extension(20, 20, 20, 20), LIMITS, fill="noise", feather=0
    )
    assert (canvas == (10, 200, 77)).all()


def test_noise_beyond_a_tile_repeats_it() -> None:
    pixels = noise(40, 1500, 3)
    canvas, _ = extend(pixels, Extension(bottom=60, right=700), LIMITS, fill="noise", feather=0)
    assert np.array_equal(canvas[40:, :1024], canvas[40:, 1024:2048])


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1, 2**64 - 1])
def test_every_seed_makes_noise(seed: int) -> None:
    canvas, _ = extend(noise(9, 9, 3), Extension(left=7), LIMITS, fill="noise", feather=0, seed=seed)
    assert canvas[:, :7].std() > 0


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_a_negative_amount_is_refused(side: str) -> None:
    with pytest.raises(InvalidRequest, match=f"extend_{side} is -8; send 0 or more"):
        extend(noise(9, 9, 3), Extension(**{side: -8}), LIMITS)


def test_no_room_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="extend_left, extend_right, extend_top, extend_bottom are all 0"):
        extend(noise(9, 9, 3), Extension(), LIMITS)


@pytest.mark.parametrize("extension", [Extension(right=8184), Extension(top=10**12), Extension(4300, 0, 4000, 4000)])
def test_a_canvas_beyond_the_limits_is_refused_before_it_is_made(extension: Extension) -> None:
    with pytest.raises(InvalidRequest, match=r"with extend_left.* has width \d+ and height \d+; this server takes"):
        extend(noise(9, 9, 3), extension, LIMITS)


@pytest.mark.parametrize(
    ("extension", "most"),
    [(Extension(left=8), 9), (Extension(8, 8), 4), (Extension(top=8), 6), (Extension(8, 0, 8, 8), 3)],
)
def test_a_feather_that_leaves_nothing_is_refused(extension: Extension, most: int) -> None:
    pixels = noise(7, 10, 3)
    _, mask = extend(pixels, extension, LIMITS, feather=most)
    assert (mask == 0).any()
    for feather in (most + 1, -1):
        with pytest.raises(InvalidRequest, match=f"feather is {feather}; this picture takes 0 to {most} pixels"):
            extend(pixels, extension, LIMITS, feather=feather)
