"""server.interpolation against torch.nn.functional.interpolate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.interpolation import MODES, NEAREST, SMOOTH, interpolate, weights
from server.noise import Float32Array, TorchGenerator

SIZES = [((64, 64), (128, 128)), ((64, 64), (96, 80)), ((384, 384), (64, 48)), ((128, 96), (37, 41)), ((5, 7), (1, 2))]
sides = st.integers(1, 90)


def in_torch(values: Float32Array, size: tuple[int, int], mode: str, antialias: bool = False) -> Float32Array:
    align = None if mode in NEAREST else False
    tensor = torch.from_numpy(values)[None]
    resized = torch.nn.functional.interpolate(tensor, size, mode=mode, align_corners=align, antialias=antialias)
    result: Float32Array = resized[0].numpy()
    return result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_it_equals_torch(mode: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    values = TorchGenerator(1).normal((3, *old))
    ours = interpolate(values, new, mode)
    assert ours.shape == (3, *new)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, in_torch(values, new, mode), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", SMOOTH)
@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_it_equals_torch_antialiased(mode: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    values = TorchGenerator(2).normal((3, *old))
    ours = interpolate(values, new, mode, antialias=True)
    np.testing.assert_allclose(ours, in_torch(values, new, mode, antialias=True), rtol=0, atol=1e-5)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from([(m, False) for m in MODES] + [(m, True) for m in SMOOTH]))
def test_it_equals_torch_at_any_size(h: int, w: int, height: int, width: int, how: tuple[str, bool]) -> None:
    values = TorchGenerator(h * 100 + w).normal((2, h, w))
    width += how[1] and width == 1
    ours = interpolate(values, (height, width), *how)
    np.testing.assert_allclose(ours, in_torch(values, (height, width), *how), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", SMOOTH)
def test_a_column_is_resized_as_a_picture_is(mode: str) -> None:
    """torch, where it antialiases to one column, repeats the first row: a fault that is not taken over."""
    values = TorchGenerator(6).normal((1, 9, 1))
    ours = interpolate(values, (5, 1), mode, antialias=True)
    wide = in_torch(np.repeat(values, 2, axis=2), (5, 2), mode, antialias=True)
    np.testing.assert_allclose(ours, wide[..., :1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", NEAREST)
def test_nearest_takes_torchs_value_at_every_size(mode: str) -> None:
    """Where a position falls on a whole number, rounding decides."""
    for old in (24, 100, 333, 1000):
        values = np.arange(old, dtype=np.float32).reshape(1, 1, old)
        for new in range(1, 400):
            np.testing.assert_array_equal(interpolate(values, (1, new), mode), in_torch(values, (1, new), mode))


@pytest.mark.parametrize("mode", SMOOTH)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(512, 2048), (2048, 255), (1000, 999)])
def test_long_axes_keep_torchs_rounding(mode: str, antialias: bool, old: int, new: int) -> None:
    values = TorchGenerator(3).normal((1, 2, old))
    ours = interpolate(values, (2, new), mode, antialias)
    np.testing.assert_allclose(ours, in_torch(values, (2, new), mode, antialias), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", SMOOTH)
@pytest.mark.parametrize("antialias", [False, True])
def test_a_constant_stays_constant(mode: str, antialias: bool) -> None:
    for old, new in ((7, 31), (31, 7), (16, 16)):
        np.testing.assert_allclose(weights(old, new, mode, antialias).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("mode", SMOOTH)
@pytest.mark.parametrize("antialias", [False, True])
def test_the_same_size_changes_nothing(mode: str, antialias: bool) -> None:
    values = TorchGenerator(4).normal((4, 9, 12))
    np.testing.assert_array_equal(interpolate(values, (9, 12), mode, antialias), values)


@pytest.mark.parametrize(
    ("size", "mode", "antialias", "told"),
    [
        ((8, 8), "lanczos", False, "bilinear, bicubic"),
        ((8, 8), "nearest", True, "bilinear or bicubic"),
        ((0, 8), "bilinear", False, "sides of 1 or more"),
    ],
)
def test_what_cannot_be_done_is_refused(size: tuple[int, int], mode: str, antialias: bool, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        interpolate(np.zeros((1, 4, 4), np.float32), size, mode, antialias)
