"""server.variation against A1111's formula written in torch, and against A1111's order of draws."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.noise import Noise, TorchGenerator
from server.philox import PhiloxGenerator
from server.variation import VariationNoise, slerp

Float32Array = npt.NDArray[np.float32]

LATENT = (4, 64, 64)
SHAPES = [LATENT, (4, 8, 12), (1, 2, 3), (16, 24, 8), (8, 8)]
SOURCES: list[Callable[[int], Noise]] = [TorchGenerator, PhiloxGenerator]
seeds = st.integers(0, 2**64 - 1)
# Columns of fewer values may by chance be parallel enough for the linear mix.
shapes = st.tuples(st.integers(1, 4), st.integers(8, 16), st.integers(1, 12))


class Recorded:
    """A generator that counts its draws."""

    def __init__(self, seed: int) -> None:
        self._generator = PhiloxGenerator(seed)
        self.draws = 0

    def normal(self, shape: tuple[int, ...]) -> Float32Array:
        self.draws += 1
        return self._generator.normal(shape)


def slerp_in_torch(strength: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """A1111's definition, one column at a time: cos t = a.b / |a||b|, sin((1-s)t)/sin t a + sin(st)/sin t b."""
    columns = [(channel, x) for channel in range(low.shape[0]) for x in range(low.shape[2])]
    cosines = []
    for channel, x in columns:
        a, b = low[channel, :, x], high[channel, :, x]
        cosines.append(torch.dot(a / a.square().sum().sqrt(), b / b.square().sum().sqrt()))
    if torch.stack(cosines).mean() > 0.9995:
        return low * strength + high * (1 - strength)
    turned = torch.empty_like(low)
    for (channel, x), cosine in zip(columns, cosines, strict=True):
        a, b, t = low[channel, :, x], high[channel, :, x], cosine.acos()
        turned[channel, :, x] = ((1 - strength) * t).sin() / t.sin() * a + (strength * t).sin() / t.sin() * b
    return turned


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Float32Array, Float32Array]:
    return TorchGenerator(seed).normal(shape), TorchGenerator(seed + 1000).normal(shape)


def rounded(values: torch.Tensor) -> Float32Array:
    result: Float32Array = values.to(torch.float32).numpy()
    return result


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) == 3])
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.5, 0.9])
def test_slerp_equals_a1111s_formula(shape: tuple[int, ...], strength: float) -> None:
    low, high = pair(shape)
    exact = slerp_in_torch(strength, torch.from_numpy(low).double(), torch.from_numpy(high).double())
    single = slerp_in_torch(strength, torch.from_numpy(low), torch.from_numpy(high))
    ours = slerp(strength, low, high)
    np.testing.assert_array_max_ulp(ours, rounded(exact), maxulp=1)
    np.testing.assert_allclose(ours, rounded(single), rtol=0, atol=1e-5)


def test_slerp_turns_columns_not_rows_nor_the_whole() -> None:
    low, high = pair(LATENT)
    ours = slerp(0.5, low, high)
    np.testing.assert_array_equal(ours[2:3, :, 5:6], slerp(0.5, low[2:3, :, 5:6], high[2:3, :, 5:6]))
    assert not np.allclose(ours, slerp(0.5, low.swapaxes(1, 2), high.swapaxes(1, 2)).swapaxes(1, 2), atol=0.01)
    assert not np.allclose(ours, slerp(0.5, low.reshape(1, -1, 1), high.reshape(1, -1, 1)).reshape(LATENT), atol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_slerp_is_the_same_under_leading_axes(shape: tuple[int, ...]) -> None:
    low, high = pair(shape)
    np.testing.assert_array_equal(slerp(0.4, low[None], high[None])[0], slerp(0.4, low, high))


def test_slerp_of_known_angles() -> None:
    # Columns at 90 and at 60 degrees, each of length 1: half way they stand at 45 and at 30 degrees.
    low = np.array([[[1, 1], [0, 0]]], dtype=np.float32)
    high = np.array([[[0, math.cos(math.pi / 3)], [1, math.sin(math.pi / 3)]]], dtype=np.float32)
    half = [[[math.cos(math.pi / 4), math.cos(math.pi / 6)], [math.sin(math.pi / 4), math.sin(math.pi / 6)]]]
    np.testing.assert_allclose(slerp(0.5, low, high), half, rtol=1e-6)


def test_slerp_of_nearly_equal_noise_is_linear_with_swapped_weights() -> None:
    low, other = pair(LATENT)
    high = (low + np.float32(0.01) * other).astype(np.float32)
    for strength in (0.0, 0.25, 1.0):
        ours = slerp(strength, low, high)
        reference = slerp_in_torch(strength, torch.from_numpy(low), torch.from_numpy(high))
        np.testing.assert_allclose(ours, rounded(reference), rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours, strength * low + (1 - strength) * high, rtol=0, atol=1e-6)


def test_slerp_changes_neither_argument() -> None:
    low, high = pair(LATENT)
    low.flags.writeable = high.flags.writeable = False
    result = slerp(0.5, low, high)
    assert result.dtype == np.float32
    assert result.flags.writeable


@settings(max_examples=60, deadline=None)
@given(seed=seeds, other=seeds, shape=shapes)
def test_strength_0_gives_the_base_noise_and_1_the_sub_noise(seed: int, other: int, shape: tuple[int, ...]) -> None:
    for source in SOURCES:
        base, sub = source(seed).normal(shape), source(other).normal(shape)
        assert np.array_equal(VariationNoise(source(seed), source(other), strength=0).normal(shape), base)
        assert np.array_equal(VariationNoise(source(seed), source(other), strength=1).normal(shape), sub)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, other=seeds, shape=shapes, strength=st.floats(0, 1))
def test_first_draw_is_the_slerp_of_first_draws(seed: int, other: int, shape: tuple[int, ...], strength: float) -> None:
    first = VariationNoise(PhiloxGenerator(seed), PhiloxGenerator(other), strength=strength).normal(shape)
    low, high = PhiloxGenerator(seed).normal(shape), PhiloxGenerator(other).normal(shape)
    np.testing.assert_array_equal(first, slerp(strength, low, high))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=shapes, strength=st.floats(0, 1))
def test_a_variation_seed_that_is_the_seed_changes_nothing(seed: int, shape: tuple[int, ...], strength: float) -> None:
    noise = VariationNoise(PhiloxGenerator(seed), PhiloxGenerator(seed), strength=strength)
    np.testing.assert_allclose(noise.normal(shape), PhiloxGenerator(seed).normal(shape), rtol=2e-7, atol=0)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("strength", [0, 0.4, 1])
def test_later_draws_continue_the_base(source: Callable[[int], Noise], strength: float) -> None:
    noise, base = VariationNoise(source(3), source(9), strength=strength), source(3)
    noise.normal(LATENT)
    base.normal(LATENT)
    for shape in (LATENT, (4, 8, 8), (5,)):
        np.testing.assert_array_equal(noise.normal(shape), base.normal(shape))


def test_an_eta_noise_seed_delta_starts_a_new_stream_after_the_first_draw() -> None:
    noise = VariationNoise(TorchGenerator(3), TorchGenerator(9), strength=0.4, later=TorchGenerator(3 + 31337))
    plain = VariationNoise(TorchGenerator(3), TorchGenerator(9), strength=0.4)
    np.testing.assert_array_equal(noise.normal(LATENT), plain.normal(LATENT))
    fresh = TorchGenerator(3 + 31337)
    for _ in range(3):
        np.testing.assert_array_equal(noise.normal(LATENT), fresh.normal(LATENT))


@pytest.mark.parametrize(("strength", "sub_draws"), [(0, 0), (0.2, 1), (1, 1)])
def test_sub_is_drawn_from_once_or_at_strength_0_never(strength: float, sub_draws: int) -> None:
    base, sub = Recorded(1), Recorded(2)
    noise = VariationNoise(base, sub, strength=strength)
    for _ in range(4):
        noise.normal((4, 8, 8))
    assert (base.draws, sub.draws) == (4, sub_draws)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.8])
def test_varied_noise_is_standard_normal_and_correlated_as_the_angle_says(strength: float) -> None:
    shape = (16, 64, 64)
    low, high = pair(shape)
    varied = slerp(strength, low, high).astype(np.float64)
    tolerance = 4.5 / math.sqrt(varied.size)
    assert abs(varied.mean()) < tolerance
    assert abs(varied.std() - 1) < 2 * tolerance
    # Columns of 64 stand at about 90 degrees.
    assert abs((varied * low).mean() - math.cos(strength * math.pi / 2)) < 2 * tolerance
    assert abs((varied * high).mean() - math.sin(strength * math.pi / 2)) < 2 * tolerance


@pytest.mark.parametrize("strength", [-0.1, 1.01, math.nan])
def test_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="from 0"):
        VariationNoise(PhiloxGenerator(0), PhiloxGenerator(1), strength=strength)


@pytest.mark.parametrize(
    ("low", "high"), [((4, 8, 8), (4, 8, 9)), ((8,), (8,)), ((4, 1, 8), (4, 1, 8)), ((0, 8, 8), (0, 8, 8))]
)
def test_shapes_without_columns_to_turn_are_refused(low: tuple[int, ...], high: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., height, width\)"):
        slerp(0.5, np.ones(low, dtype=np.float32), np.ones(high, dtype=np.float32))


def test_importing_the_module_does_not_import_torch() -> None:
    program = "import sys, server.variation; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
