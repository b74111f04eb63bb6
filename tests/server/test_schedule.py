"""server.schedule against diffusers' own schedulers, and against values known for Stable Diffusion."""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.errors import ScheduleError
from server.schedule import Schedule, TrainedSchedule, ddim_schedule, dpm_schedule, euler_schedule
from tests.fakes import STABLE_DIFFUSION, trained

STEPS = (1, 2, 7, 20, 50, 999)
SPACED = [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
KINDS = ("normal", "karras")


@cache
def oracle(name: str, **config: Any) -> Any:
    """A scheduler of diffusers with Stable Diffusion's schedule."""
    import diffusers
    import torch

    torch.set_num_threads(1)
    return getattr(diffusers, name)(**{**STABLE_DIFFUSION, **config})


def spaced_oracle(name: str, steps: int, **config: Any) -> Any:
    scheduler = oracle(name, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def abar(sigmas: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return (1 / (1 + sigmas**2)).astype(np.float32)


def assert_same_levels(schedule: Schedule, scheduler: Any) -> None:
    sigmas = scheduler.sigmas.numpy()
    np.testing.assert_allclose(schedule.sigmas, sigmas[:-1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(schedule.next_sigmas, sigmas[1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
@pytest.mark.parametrize(("start", "end", "length"), [(0.00085, 0.012, 1000), (0.0001, 0.02, 1000), (0.001, 0.05, 37)])
def test_trained_levels_equal_diffusers_to_the_bit(kind: str, start: float, end: float, length: int) -> None:
    config = {"beta_schedule": kind, "beta_start": start, "beta_end": end, "num_train_timesteps": length}
    expected = oracle("DDIMScheduler", **config).alphas_cumprod.numpy()
    assert np.array_equal(abar(TrainedSchedule.from_config(config).sigmas), expected)


def test_trained_levels_equal_diffusers_to_the_bit_when_betas_are_listed() -> None:
    betas = tuple(np.geomspace(1e-4, 0.03, 50).tolist())
    expected = oracle("DDIMScheduler", trained_betas=betas, num_train_timesteps=50).alphas_cumprod.numpy()
    assert np.array_equal(abar(trained(trained_betas=list(betas), num_train_timesteps=50).sigmas), expected)


def test_stable_diffusion_has_its_known_levels() -> None:
    schedule = trained()
    assert schedule.length == 1000
    assert abar(schedule.sigmas)[[0, 981]] == pytest.approx([0.99914998, 0.0057755], abs=5e-8)
    assert schedule.sigmas[[0, 999]] == pytest.approx([0.02916753, 14.61464662], abs=1e-8)
    assert np.all(np.diff(schedule.sigmas) > 0)


def test_absent_keys_mean_epsilon_linear_betas_and_no_offset() -> None:
    schedule = TrainedSchedule.from_config({})
    assert (schedule.prediction_type, schedule.steps_offset, schedule.length) == ("epsilon", 0, 1000)
    assert np.array_equal(
        abar(schedule.sigmas), abar(trained(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).sigmas)
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"set_alpha_to_one": True}, 0.0), ({"set_alpha_to_one": False}, 0.02916753), ({}, 0.0)],
)
def test_ddim_ends_at_the_clean_latent_unless_told_otherwise(config: dict[str, bool], expected: float) -> None:
    schedule = trained(**config)
    assert schedule.final_sigma == pytest.approx(expected, rel=1e-6)
    assert ddim_schedule(schedule, 20, "normal").next_sigmas[-1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("beta_schedule", "squaredcos_cap_v2", "linear, scaled_linear"),
        ("timestep_spacing", "sideways", "leading, trailing, linspace"),
        ("prediction_type", "flow_prediction", "epsilon, v_prediction, sample"),
        ("rescale_betas_zero_snr", True, "False"),
    ],
)
def test_a_value_that_is_not_supported_is_refused_by_name(key: str, value: object, remedy: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        trained(**{key: value})
    assert all(part in str(caught.value) for part in (key, repr(value), remedy))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("spacing", "offset"), SPACED)
@pytest.mark.parametrize("kind", KINDS)
def test_euler_levels_equal_diffusers(kind: str, spacing: str, offset: int, steps: int) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": offset}
    schedule = euler_schedule(trained(**config), steps, kind)
    scheduler = spaced_oracle("EulerDiscreteScheduler", steps, use_karras_sigmas=kind == "karras", **config)
    assert_same_levels(schedule, scheduler)
    np.testing.assert_allclose(schedule.timesteps, scheduler.timesteps.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("spacing", "offset"), SPACED)
def test_euler_ancestral_levels_equal_diffusers(spacing: str, offset: int, steps: int) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": offset}
    schedule = euler_schedule(trained(**config), steps, "normal")
    scheduler = spaced_oracle("EulerAncestralDiscreteScheduler", steps, **config)
    assert_same_levels(schedule, scheduler)
    np.testing.assert_allclose(schedule.timesteps, scheduler.timesteps.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("spacing", "offset"), SPACED)
@pytest.mark.parametrize("to_one", [False, True])
def test_ddim_levels_equal_diffusers(to_one: bool, spacing: str, offset: int, steps: int) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_one}
    schedule = ddim_schedule(trained(**config), steps, "normal")
    scheduler = spaced_oracle("DDIMScheduler", steps, **config)
    timesteps = scheduler.timesteps.numpy()
    assert np.array_equal(schedule.timesteps, timesteps)
    levels = scheduler.alphas_cumprod.numpy()
    targets = timesteps - 1000 // steps
    assert np.array_equal(abar(schedule.sigmas), levels[timesteps])
    expected = np.where(targets >= 0, levels[np.maximum(targets, 0)], scheduler.final_alpha_cumprod.numpy())
    assert np.array_equal(abar(schedule.next_sigmas), expected)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("spacing", "offset"), SPACED)
@pytest.mark.parametrize("kind", KINDS)
def test_dpm_levels_equal_diffusers(kind: str, spacing: str, offset: int, steps: int) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": offset}
    schedule = dpm_schedule(trained(**config), steps, kind)
    scheduler = spaced_oracle("DPMSolverMultistepScheduler", steps, use_karras_sigmas=kind == "karras", **config)
    assert np.array_equal(schedule.timesteps, scheduler.timesteps.numpy())
    assert_same_levels(schedule, scheduler)


def test_spacing_is_that_of_each_diffusers_class_when_the_checkpoint_names_none() -> None:
    """Stable Diffusion 1.5 was published without `timestep_spacing`; the classes' defaults differ."""
    published = {**STABLE_DIFFUSION, "_class_name": "PNDMScheduler", "set_alpha_to_one": False, "steps_offset": 1}
    schedule = TrainedSchedule.from_config(published)
    found = {
        "EulerDiscreteScheduler": euler_schedule(schedule, 20, "normal"),
        "DDIMScheduler": ddim_schedule(schedule, 20, "normal"),
        "DPMSolverMultistepScheduler": dpm_schedule(schedule, 20, "normal"),
    }
    expected = {name: spaced_oracle(name, 20, steps_offset=1).timesteps.numpy() for name in found}
    wrong = [name for name, levels in found.items() if not np.allclose(levels.timesteps, expected[name], atol=1e-4)]
    assert wrong == []


@pytest.mark.parametrize(
    ("make", "spacing", "first", "last"),
    [
        (euler_schedule, "leading", [951, 901], [51, 1]),
        (euler_schedule, "linspace", [999, 946.421], [52.579, 0]),
        (euler_schedule, "trailing", [999, 949], [99, 49]),
        (ddim_schedule, "linspace", [999, 946], [53, 0]),
        (dpm_schedule, "leading", [941, 894], [95, 48]),
        (dpm_schedule, "linspace", [999, 949], [100, 50]),
    ],
)
def test_twenty_steps_have_their_known_timesteps(
    make: Any, spacing: str, first: list[float], last: list[float]
) -> None:
    timesteps = make(
        trained(timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0), 20, "normal"
    ).timesteps
    assert timesteps[:2] == pytest.approx(first, abs=1e-3)
    assert timesteps[-2:] == pytest.approx(last, abs=1e-3)


def test_karras_levels_are_the_known_ones() -> None:
    euler = euler_schedule(trained(timestep_spacing="leading", steps_offset=1), 10, "karras")
    assert euler.sigmas[[0, 1, -1]] == pytest.approx([8.3907, 5.4777, 0.0413], abs=1e-4)
    dpm = dpm_schedule(trained(), 10, "karras")
    known = [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292]
    assert dpm.sigmas == pytest.approx(known, abs=1e-4)
    assert dpm.timesteps.tolist() == [999, 916, 815, 687, 523, 327, 146, 41, 7, 0]


def test_ddim_takes_eulers_karras_levels_and_its_own_end() -> None:
    schedule = trained(steps_offset=1)
    euler, ddim = (make(schedule, 12, "karras") for make in (euler_schedule, ddim_schedule))
    assert np.array_equal(ddim.sigmas, euler.sigmas)
    assert np.array_equal(ddim.timesteps, euler.timesteps)
    assert np.array_equal(ddim.next_sigmas, [*euler.sigmas[1:], schedule.final_sigma])


@pytest.mark.parametrize("make", [euler_schedule, ddim_schedule, dpm_schedule])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_lowers_the_noise_for_any_number_of_steps(make: Any, spacing: str, kind: str) -> None:
    schedule = trained(timestep_spacing=spacing, steps_offset=1)
    for steps in [*range(1, 60), 333, 500]:
        levels = make(schedule, steps, kind)
        assert len(levels.timesteps) == len(levels.sigmas) == len(levels.next_sigmas) == steps
        assert np.all(np.diff(levels.sigmas) < 0), steps
        assert levels.timesteps.min() >= 0
        assert levels.timesteps.max() <= 999


def test_sigmas_and_timesteps_convert_into_each_other() -> None:
    schedule = trained()
    whole = np.arange(1000.0)
    assert np.array_equal(schedule.sigma_at(whole), schedule.sigmas)
    np.testing.assert_allclose(schedule.timestep_at(schedule.sigmas), whole, atol=1e-9)
    assert schedule.sigma_at(np.array([10.5])) == pytest.approx(schedule.sigmas[10:12].mean())
    assert schedule.timestep_at(np.sqrt(schedule.sigmas[10:11] * schedule.sigmas[11:12])) == pytest.approx(10.5)
