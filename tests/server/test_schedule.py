"""server.schedule: trained levels against diffusers to the bit, and against values known for Stable Diffusion."""

from typing import Any

import numpy as np
import pytest

from server.errors import ScheduleError
from server.schedule import TrainedSchedule
from server.table import Level
from tests.fakes import STABLE_DIFFUSION, trained


def oracle(**config: Any) -> Any:
    """`alphas_cumprod` of diffusers."""
    import torch
    from diffusers import DDIMScheduler

    torch.set_num_threads(1)
    return DDIMScheduler(**config).alphas_cumprod.numpy()


TRAINED = [
    {"beta_schedule": kind, "beta_start": start, "beta_end": end, "num_train_timesteps": length}
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2")
    for start, end, length in ((0.00085, 0.012, 1000), (0.0001, 0.02, 1000), (0.001, 0.05, 37))
]


@pytest.mark.parametrize("config", TRAINED)
def test_trained_levels_equal_diffusers_to_the_bit(config: dict[str, Any]) -> None:
    schedule = TrainedSchedule.from_config(config)
    assert schedule.length == config["num_train_timesteps"]
    assert np.array_equal(schedule.abar, oracle(**config))


@pytest.mark.parametrize("config", TRAINED)
def test_rescaled_levels_equal_diffusers(config: dict[str, Any]) -> None:
    """Not to the bit: the last bit of torch's square roots depends on the processor."""
    rescaled = {**config, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    abar = TrainedSchedule.from_config(rescaled).abar
    np.testing.assert_allclose(abar, oracle(**rescaled), rtol=1e-5, atol=0)
    assert abar[-1] == 0


def test_listed_betas_equal_diffusers_to_the_bit() -> None:
    betas = np.geomspace(1e-4, 0.03, 50).tolist()
    schedule = trained(trained_betas=betas, num_train_timesteps=50)
    assert np.array_equal(schedule.abar, oracle(trained_betas=tuple(betas), num_train_timesteps=50))


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_per_signal_is_that_of_diffusers(kind: str) -> None:
    """Levels of the cosine schedule reach 20,000: only a signal of nothing at all has a stand-in."""
    config = {"beta_schedule": kind, "beta_start": 1e-4, "beta_end": 0.02}
    abar = oracle(**config).astype(np.float64)
    np.testing.assert_allclose(TrainedSchedule.from_config(config).sigmas, np.sqrt((1 - abar) / abar), rtol=1e-12)


def test_stable_diffusion_has_its_known_levels() -> None:
    schedule = trained()
    known = [0.99914998, 0.27633247, 0.0057755, 0.0046601]
    assert schedule.abar[[0, 500, 981, 999]] == pytest.approx(known, rel=1e-5)
    assert schedule.sigmas[[0, 500, 999]] == pytest.approx([0.02916753, 1.6182797, 14.61464662], rel=1e-6)
    assert np.all(np.diff(schedule.abar) < 0)
    assert np.all(np.diff(schedule.sigmas) > 0)


def test_rescaled_stable_diffusion_has_its_known_levels() -> None:
    schedule = trained(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert schedule.abar[0] == trained().abar[0]
    assert schedule.abar[500] == pytest.approx(0.2410185, rel=1e-6)
    # Levels near nothing are differences of close numbers; the last is exact.
    assert schedule.abar[998] == pytest.approx(1.968e-7, rel=1e-3)
    assert schedule.abar[999] == 0
    assert schedule.sigmas[999] == pytest.approx(4096, rel=1e-6)
    assert np.isfinite(schedule.sigmas).all()


def test_betas_have_diffusers_names_not_compvis() -> None:
    """CompVis calls diffusers' scaled_linear "linear"; taking one for the other gives quite other levels."""
    linear = trained(beta_schedule="linear").abar
    by_hand = np.cumprod(1 - np.linspace(0.00085, 0.012, 1000))
    np.testing.assert_allclose(linear, by_hand, rtol=1e-5)
    scaled = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    np.testing.assert_allclose(trained().abar, scaled, rtol=1e-5)
    assert abs(linear[500] / scaled[500] - 1) > 0.1


def test_absent_keys_mean_what_diffusers_classes_mean() -> None:
    schedule = TrainedSchedule.from_config({})
    assert np.array_equal(schedule.abar, oracle())
    assert (schedule.prediction_type, schedule.steps_offset, schedule.length) == ("epsilon", 0, 1000)
    assert (schedule.spacing, schedule.set_alpha_to_one, schedule.final_sigma) == (None, None, None)
    assert (schedule.kind, schedule.original_inference_steps, schedule.timestep_scaling) == ("normal", 50, 10.0)


def test_keys_are_read() -> None:
    schedule = trained(
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=False,
        final_sigmas_type="sigma_min",
        original_inference_steps=100,
        timestep_scaling=3.0,
        prediction_type="sample",
    )
    assert (schedule.spacing, schedule.steps_offset, schedule.set_alpha_to_one) == ("trailing", 1, False)
    assert (schedule.final_sigma, schedule.original_inference_steps) == ("sigma_min", 100)
    assert (schedule.timestep_scaling, schedule.prediction_type) == (3.0, "sample")


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_the_checkpoint_may_ask_for_a_sigma_schedule(kind: str) -> None:
    assert trained(**{f"use_{kind}_sigmas": True}).kind == kind
    assert trained(**{f"use_{kind}_sigmas": False}).kind == "normal"


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("beta_schedule", "sigmoid", "linear, scaled_linear, squaredcos_cap_v2"),
        ("timestep_spacing", "sideways", "leading, trailing, linspace"),
        ("prediction_type", "flow_prediction", "epsilon, v_prediction, sample"),
        ("final_sigmas_type", "half", "zero, sigma_min"),
        ("thresholding", True, "False"),
        ("clip_sample", True, "False"),
        ("use_flow_sigmas", True, "False"),
        ("rescale_betas_zero_snr", True, "v_prediction"),
    ],
)
def test_a_value_that_is_not_supported_is_refused_by_name(key: str, value: object, remedy: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        trained(**{key: value})
    assert all(part in str(caught.value) for part in (key, str(value), remedy))


@pytest.mark.parametrize(
    ("config", "default", "expected"),
    [
        ({"set_alpha_to_one": True}, False, 1.0),
        ({"set_alpha_to_one": False}, True, 0.99914998),
        ({}, True, 1.0),
        ({}, False, 0.99914998),
    ],
)
def test_below_the_first_timestep_lies_the_final_level(config: dict[str, bool], default: bool, expected: float) -> None:
    level = trained(**config).level(-20, default)
    assert level.alpha**2 == pytest.approx(expected, abs=5e-8)
    assert level.sigma**2 == pytest.approx(1 - expected, abs=5e-8)


def test_a_trained_level_has_unit_variance() -> None:
    for timestep in (0, 500, 981, 999):
        level = trained().level(timestep)
        assert level.alpha**2 == pytest.approx(float(oracle(**STABLE_DIFFUSION)[timestep]), rel=1e-12)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-12)
    assert trained(rescale_betas_zero_snr=True, prediction_type="v_prediction").level(999) == Level(0.0, 1.0)


def test_sigmas_and_timesteps_convert_into_each_other() -> None:
    schedule = trained()
    whole = np.arange(1000.0)
    assert np.array_equal(schedule.sigma_at(whole), schedule.sigmas)
    np.testing.assert_allclose(schedule.timestep_at(schedule.sigmas), whole, atol=1e-9)
    assert schedule.sigma_at(np.array([10.5])) == pytest.approx(schedule.sigmas[10:12].mean())
    assert schedule.timestep_of(float(np.sqrt(schedule.sigmas[10] * schedule.sigmas[11]))) == pytest.approx(10.5)


def test_sigmas_outside_the_trained_ones_have_the_outermost_timesteps() -> None:
    assert trained().timestep_at(np.array([0.0, 0.01, 50.0])).tolist() == [0, 0, 999]
