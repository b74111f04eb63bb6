"""server.emphasis against the formulas of AUTOMATIC1111's webui, ComfyUI and compel."""

from __future__ import annotations

import numpy as np
import pytest

from server.emphasis import MODES, Mode, States, weigh

CHUNKS, LENGTH, WIDTH = 3, 7, 16


def floats(*numbers: float | list[float]) -> States:
    return np.array(numbers, np.float32)


@pytest.fixture
def states() -> States:
    return np.random.default_rng(0).normal(-0.1, 1, (CHUNKS, LENGTH, WIDTH)).astype(np.float32)


@pytest.fixture
def empty() -> States:
    return np.random.default_rng(1).normal(-0.1, 1, (LENGTH, WIDTH)).astype(np.float32)


@pytest.fixture
def weights() -> States:
    """Of the middle chunk, three tokens."""
    weights = np.ones((CHUNKS, LENGTH), np.float32)
    weights[1, 1:4] = [1.3, 0.5, -2]
    return weights


@pytest.mark.parametrize("mode", MODES)
def test_without_weights_nothing_is_done(states: States, empty: States, mode: Mode) -> None:
    before = states.copy()
    found = weigh(states, np.ones((CHUNKS, LENGTH), np.float32), mode, empty)
    assert found is states
    assert found.tobytes() == before.tobytes()


def test_ignored_weights_do_nothing(states: States, weights: States) -> None:
    assert weigh(states, weights, "ignore") is states


def test_a1111_by_hand() -> None:
    """Means: (1 + 3 + 5 + 7) / 4 = 4 before, (1 + 3 + 10 + 14) / 4 = 7 after; so all is scaled by 4 / 7."""
    states = floats([1, 3], [5, 7])[None]
    weights = floats([1, 2])
    assert weigh(states, weights, "a1111_no_norm").tolist() == [[[1, 3], [10, 14]]]
    expected = np.array([[[4 / 7, 12 / 7], [40 / 7, 8]]])
    np.testing.assert_allclose(weigh(states, weights, "a1111"), expected, rtol=1e-7)


def test_a1111_restores_the_mean_of_each_chunk_alone(states: States, weights: States) -> None:
    found = weigh(states, weights, "a1111")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1].mean(), states[1].mean(), rtol=1e-5)
    product = states[1].astype(np.float64) * weights[1][:, None]
    np.testing.assert_allclose(found[1], product * (states[1].astype(np.float64).mean() / product.mean()), rtol=1e-6)
    assert found[[0, 2]].tobytes() == states[[0, 2]].tobytes()


@pytest.mark.parametrize("mode", MODES)
def test_a_chunk_does_not_depend_on_its_neighbours(states: States, weights: States, empty: States, mode: Mode) -> None:
    weights[0, 2] = 5
    together = weigh(states, weights, mode, empty)
    alone = [weigh(states[i : i + 1], weights[i : i + 1], mode, empty)[0] for i in range(CHUNKS)]
    assert together.tobytes() == np.stack(alone).tobytes()


def test_comfy_by_hand() -> None:
    """(state - empty) * weight + empty: (5 - 1) * 2 + 1 = 9, (7 - 3) * 2 + 3 = 11."""
    states, empty = floats([1, 3], [5, 7])[None], floats([0, 0], [1, 3])
    assert weigh(states, floats([1, 2]), "comfy", empty).tolist() == [[[1, 3], [9, 11]]]
    assert weigh(states, floats([1, 0]), "comfy", empty).tolist() == [[[1, 3], [1, 3]]]


def test_compel_by_hand() -> None:
    """Above 1 as ComfyUI; at one half, tan(pi / 4) = 1, so the mean of half the difference and of none: a quarter."""
    states, empty = floats([1, 3], [5, 7])[None], floats([0, 0], [1, 3])
    assert weigh(states, floats([1, 2]), "compel", empty).tolist() == [[[1, 3], [9, 11]]]
    np.testing.assert_allclose(weigh(states, floats([1, 0.5]), "compel", empty), [[[1, 3], [2, 4]]], rtol=1e-7)
    np.testing.assert_allclose(weigh(states, floats([1, 0]), "compel", empty), [[[1, 3], [1, 3]]], rtol=1e-7)


def test_compel_is_continuous_at_1_and_grows(states: States, empty: States) -> None:
    def away(weight: float) -> float:
        weights = np.full((CHUNKS, LENGTH), weight, np.float32)
        return float(np.abs(weigh(states, weights, "compel", empty) - empty).mean())

    distances = [away(weight) for weight in (0, 0.25, 0.5, 0.75, 0.999, 1, 1.001, 1.5, 2)]
    assert distances == sorted(distances)
    assert distances[4] == pytest.approx(distances[5], rel=0.01)


@pytest.mark.parametrize("mode", ["a1111_no_norm", "comfy", "compel"])
def test_a_token_of_weight_1_keeps_its_bits(states: States, weights: States, empty: States, mode: Mode) -> None:
    found = weigh(states, weights, mode, empty)
    weighted = weights != 1
    assert found[~weighted].tobytes() == states[~weighted].tobytes()
    assert (found[weighted] != states[weighted]).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_input_is_not_changed(states: States, weights: States, empty: States, mode: Mode) -> None:
    before = [array.copy() for array in (states, weights, empty)]
    weigh(states, weights, mode, empty)
    for array, copy in zip((states, weights, empty), before, strict=True):
        assert array.tobytes() == copy.tobytes()


@pytest.mark.parametrize(
    ("row", "weight"),
    # The mean after is 0, both are 0, and the ratio is beyond every number.
    [([1.0, -1.0, 1.0, 1.0], 0.0), ([0.0, 0.0, 0.0, 0.0], 2.0), ([1e-45, -1e-45, 3e38, 3e38], 0.0)],
)
def test_a_mean_that_cannot_be_restored_is_left(row: list[float], weight: float) -> None:
    states = floats(row[:2], row[2:])[None]
    expected = [[row[:2], [number * weight for number in row[2:]]]]
    np.testing.assert_array_equal(weigh(states, floats([1, weight]), "a1111"), np.array(expected, np.float32))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weight", [1e6, -1e6, 3e38])
def test_too_large_is_not_infinite(empty: States, mode: Mode, weight: float) -> None:
    states = np.full((1, LENGTH, WIDTH), 3e38, np.float32)
    weights = np.ones((1, LENGTH), np.float32)
    weights[0, 1] = weight
    assert np.isfinite(weigh(states, weights, mode, empty)).all()


@pytest.mark.parametrize("mode", ["comfy", "compel"])
def test_modes_that_need_the_empty_prompt_say_so(states: States, weights: States, mode: Mode) -> None:
    with pytest.raises(ValueError, match=f"{mode}.*empty prompt"):
        weigh(states, weights, mode)
