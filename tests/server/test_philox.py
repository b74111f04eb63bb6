"""server.philox against published vectors, against a scalar Philox, and as noise."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from server import philox
from server.philox import PhiloxGenerator, philox4x32

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, words.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# Published with A1111's generator: seed 0, shape (3, 4).
A1111_SEED_0 = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]
# Printed by torch on a GPU: torch.manual_seed(0), then torch.randn(8, 8, device="cuda").
GPU_SEED_0 = [
    [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284],
    [-1.0745, -0.3631, -1.6711, 2.2655, 0.3117, -0.1842, 1.2866, 1.1820],
    [-0.1271, 1.2169, 1.4353, 1.0605, -0.4941, -1.4244, -0.7244, -1.2973],
    [0.0697, -0.0074, 1.8969, 0.6878, -0.0779, -0.8373, 1.3506, -0.2879],
    [-0.5965, -0.3283, -0.9086, -0.8059, -0.7407, -0.0504, 0.5435, 1.5150],
    [0.0141, 0.4532, 1.6349, 0.7124, -0.1806, 1.0252, -1.4622, -0.7554],
    [-0.1836, 0.3824, 0.3918, -0.0830, 0.8971, -1.1123, 0.1116, 0.4863],
    [-0.5499, -0.3231, -0.5469, 0.9049, 0.2837, 0.1210, 0.4730, -1.0823],
]
# Printed by torch on a GPU: six draws of four values, one after the other, from seed 42.
GPU_SEED_42_DRAWS = [
    [0.1940, 2.1614, -0.1721, 0.8491],
    [0.1391, -0.1082, -0.7174, 0.7566],
    [-0.5187, 1.2268, 0.6255, -0.9117],
    [-0.6974, -1.8688, -0.8832, -1.6627],
    [-1.2682, -0.0383, -0.1029, 1.4400],
    [1.4640, -0.3238, 0.7740, 1.5892],
]
# cuRAND's decimal constants for 2**-32 and 2 pi, their product rounded to float32 as A1111 does.
ANGLE_STEP = float(np.float32(2.3283064e-10 * 6.2831855))
SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 42, 2**63, 2**64 - 1]


def scalar_philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """One counter through ten rounds, in Python's integers: each half swaps and mixes the product's two words."""
    left, right = list(counter[:2]), list(counter[2:])
    keys = list(key)
    for _ in range(10):
        left_product, right_product = left[0] * 0xD2511F53, right[0] * 0xCD9E8D57
        left = [(right_product >> 32) ^ left[1] ^ keys[0], right_product % 2**32]
        right = [(left_product >> 32) ^ right[1] ^ keys[1], left_product % 2**32]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return left + right


def scalar_normal(seed: int, draw: int, index: int, angle_step: float = ANGLE_STEP) -> float:
    first, second, *_ = scalar_philox((draw, 0, index, 0), (seed % 2**32, seed >> 32))
    radius = math.sqrt(-2 * math.log((first + 0.5) * 2**-32))
    return radius * math.sin(second * angle_step + angle_step / 2)


def words(*values: int) -> npt.NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    one, two, three, four = (words(word) for word in counter)
    assert [word.tolist() for word in philox4x32((one, two, three, four), key)] == [[word] for word in expected]
    assert scalar_philox(counter, key) == list(expected)


def test_words_of_many_counters_are_those_of_each_alone() -> None:
    key = (0xA4093822, 0x299F31D0)
    high = [0, 1, 2**32 - 1, 0x85A308D3]
    many = philox4x32((words(7), words(*high), words(2**32 - 5), words(0)), key)
    expected = [scalar_philox((7, word, 2**32 - 5, 0), key) for word in high]
    assert np.stack(many, axis=1).tolist() == expected


def test_published_values_of_a1111() -> None:
    # They fit an exact 2 pi; A1111's code rounds it to float32, which moves an angle by up to 1.8e-7.
    np.testing.assert_allclose(PhiloxGenerator(0).normal((3, 4)), A1111_SEED_0, rtol=0, atol=4e-7)
    exact = [scalar_normal(0, 0, index, 2 * math.pi / 2**32) for index in range(12)]
    np.testing.assert_allclose(exact, np.ravel(A1111_SEED_0), rtol=0, atol=6e-9)


def test_published_values_of_a_gpu() -> None:
    np.testing.assert_allclose(PhiloxGenerator(0).normal((8, 8)), GPU_SEED_0, rtol=0, atol=5.1e-5)


def test_published_successive_draws_of_a_gpu() -> None:
    generator = PhiloxGenerator(42)
    draws = [generator.normal((4,)) for _ in GPU_SEED_42_DRAWS]
    np.testing.assert_allclose(draws, GPU_SEED_42_DRAWS, rtol=0, atol=5.1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_value_depends_on_seed_draw_and_index_alone(seed: int) -> None:
    generator = PhiloxGenerator(seed)
    for draw, shape in enumerate([(5,), (), (2, 3), (0,), (1, 4, 8, 8), (4, 64, 64)]):
        values = generator.normal(shape)
        assert values.shape == shape
        some = range(0, values.size, max(1, values.size // 16))
        expected = [scalar_normal(seed, draw, index) for index in some]
        # numpy's log and sin may differ from the C library's in the last bit of float64: one float32 rounding.
        np.testing.assert_allclose(values.reshape(-1)[list(some)], expected, rtol=1.3e-7, atol=0)


def test_an_empty_draw_counts() -> None:
    generator = PhiloxGenerator(3)
    generator.normal((0,))
    other = PhiloxGenerator(3)
    other.normal((7, 7))
    np.testing.assert_array_equal(generator.normal((9,)), other.normal((9,)))


def test_a_short_draw_begins_a_long_one() -> None:
    long = PhiloxGenerator(8).normal((4, 64, 64)).reshape(-1)
    np.testing.assert_array_equal(PhiloxGenerator(8).normal((3, 5)).reshape(-1), long[:15])


def test_extreme_words_give_finite_values() -> None:
    low, high = words(0, 0, 2**32 - 1, 2**32 - 1), words(0, 2**32 - 1, 0, 2**32 - 1)
    values = philox._box_muller(low, high)
    assert np.isfinite(values).all()
    assert float(np.abs(values).max()) < math.sqrt(2 * 33 * math.log(2))


def test_noise_is_standard_normal() -> None:
    values = PhiloxGenerator(5).normal((16, 4, 64, 64)).astype(np.float64)
    n = values.size
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs((values**2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((values**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert abs((values <= 1).mean() - 0.841345) < 4 * math.sqrt(0.8413 * 0.1587 / n)


def test_draws_seeds_and_neighbours_are_not_correlated() -> None:
    shape = (4, 64, 64)
    streams = []
    for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**64 - 1):
        generator = PhiloxGenerator(seed)
        streams += [generator.normal(shape).reshape(-1) for _ in range(3)]
    streams.append(np.roll(streams[0], 1))
    correlations = np.corrcoef(np.stack(streams).astype(np.float64)) - np.eye(len(streams))
    assert float(np.abs(correlations).max()) < 4.5 / math.sqrt(math.prod(shape))


def test_result_is_new_writable_and_contiguous() -> None:
    generator = PhiloxGenerator(5)
    first, second = generator.normal((4, 8, 8)), generator.normal((4, 8, 8))
    assert first.dtype == np.float32
    assert first.flags.writeable
    assert first.flags.c_contiguous
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"0 to 2\*\*64 - 1"):
        PhiloxGenerator(seed)


def test_negative_size_is_refused_and_is_no_draw() -> None:
    generator = PhiloxGenerator(0)
    with pytest.raises(ValueError, match="negative size"):
        generator.normal((-1, 16))
    np.testing.assert_array_equal(generator.normal((5,)), PhiloxGenerator(0).normal((5,)))


def test_importing_the_module_does_not_import_torch() -> None:
    program = "import sys, server.philox; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
