"""server.samplers against diffusers 0.42.1, call by call: inputs of the network, latents, draws, timesteps."""

from typing import Any

import numpy as np
import pytest

from server.levels import Choice
from server.samplers import METHODS, sampler_table
from tests.fakes import TableRun, trained
from tests.oracles import LATENT, ORACLES, PREDICTION_TYPES, assert_same_steps, scheduler

OFFSETS = {"leading": 1, "trailing": 0, "linspace": 0}
CASES = [
    (sampler, kind, predicted)
    for sampler, oracle in ORACLES.items()
    for kind in oracle.kinds
    for predicted in oracle.predictions
]
# For the fast suite: each kind with one spacing, and other predictions than the noise with one kind.
QUICK_SPACING = {"normal": "leading", "karras": "trailing", "exponential": "linspace", "beta": "leading"}
QUICK = [(sampler, kind, predicted) for sampler, kind, predicted in CASES if predicted == "epsilon" or kind == "normal"]
# Where multistep methods lower their order at the end, and where there is nothing before the first step.
FEW = (1, 2, 3, 5, 14, 15)
MULTISTEP = ("deis", "dpmpp_singlestep", "unipc", "unipc_bh1")
# Steps so far apart that diffusers loses the level between in single precision; `test_k_diffusion` has such a one.
LOST = (2, 3)
# The last level may be the least trained one instead of 0.
ENDING = (
    "euler",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_singlestep",
    "unipc",
    "unipc_bh1",
)
RESCALED = (*ENDING[:5], *ENDING[6:], "euler_ancestral", "dpmpp_3m_sde", "ddim", "ddpm", "lcm", "tcd")
TIMESTEPS = (999, 850, 705, 400, 333, 120, 17)
SIGMAS = (12.5, 7.1, 3.3, 1.25, 0.6, 0.21)


def compare(
    sampler: str,
    steps: int,
    kind: str = "normal",
    *,
    eta: float | None = None,
    solver_order: int | None = None,
    **config: Any,
) -> None:
    """A run along the whole table of a sampler, and one of the class of diffusers that it is."""
    options: dict[str, Any] = {} if eta is None else {"eta": eta}
    settings: dict[str, Any] = {}
    if solver_order is not None:
        # LMS takes its order at every step.
        (options if sampler == "lms" else settings)["order" if sampler == "lms" else "solver_order"] = solver_order
    made = scheduler(sampler, steps, kind, **config, **settings)
    table = sampler_table(sampler, Choice(kind=kind, steps=steps), trained(**config), eta, solver_order)
    assert_same_steps(table, made, calls=comparable(sampler, steps, made), **options)


def comparable(sampler: str, steps: int, made: Any) -> int | None:
    """How many calls diffusers does as its papers say; None means all of them.

    What is left out is at the end of this file, and in `test_k_diffusion`.
    """
    if sampler == "dpmpp_3m_sde" and steps > 4:
        return 2
    if sampler == "unipc_bh1" and made.sigmas[-1] == 0:
        return steps - 1
    # A last step from a level to the same level: 0 / 0 in these two.
    if sampler in ("dpmpp_3m", "dpmpp_2m_sde_heun") and steps >= 15 and made.sigmas[-1] == made.sigmas[-2]:
        return steps - 1
    return None


@pytest.mark.parametrize(("sampler", "kind", "predicted"), QUICK)
def test_twenty_steps_equal_diffusers(sampler: str, kind: str, predicted: str) -> None:
    spacing = QUICK_SPACING[kind]
    compare(sampler, 20, kind, timestep_spacing=spacing, steps_offset=OFFSETS[spacing], prediction_type=predicted)


@pytest.mark.parametrize("sampler", ORACLES)
def test_few_steps_equal_diffusers(sampler: str) -> None:
    for steps in FEW:
        if sampler != "dpm2_ancestral" or steps not in LOST:
            compare(sampler, steps, timestep_spacing="trailing")


@pytest.mark.slow
@pytest.mark.parametrize("spacing", OFFSETS)
@pytest.mark.parametrize(("sampler", "kind", "predicted"), CASES)
def test_any_number_of_steps_equals_diffusers(sampler: str, kind: str, predicted: str, spacing: str) -> None:
    for steps in (*FEW, 20, 50):
        if sampler != "dpm2_ancestral" or steps not in LOST:
            compare(
                sampler, steps, kind, timestep_spacing=spacing, steps_offset=OFFSETS[spacing], prediction_type=predicted
            )


@pytest.mark.parametrize("sampler", ORACLES)
def test_each_class_has_its_own_defaults_where_the_configuration_is_silent(sampler: str) -> None:
    compare(sampler, 8)


@pytest.mark.parametrize("sampler", ORACLES)
def test_other_trained_lengths_and_offsets_equal_diffusers(sampler: str) -> None:
    compare(sampler, 7, num_train_timesteps=500, timestep_spacing="leading", steps_offset=3)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sampler", ORACLES)
def test_other_trained_levels_equal_diffusers(sampler: str, beta_schedule: str) -> None:
    config: dict[str, Any] = {
        "beta_schedule": beta_schedule,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "timestep_spacing": "trailing",
    }
    for kind in ORACLES[sampler].kinds:
        # The highest cosine levels lie too far apart for diffusers' single precision.
        if (sampler, beta_schedule) != ("dpm2_ancestral", "squaredcos_cap_v2"):
            compare(sampler, 8, kind, **config)


@pytest.mark.parametrize("sampler", RESCALED)
def test_no_signal_at_the_first_timestep_equals_diffusers(sampler: str) -> None:
    config: dict[str, Any] = {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    for kind in ORACLES[sampler].kinds:
        for steps in (1, 16):
            compare(sampler, steps, kind, **config)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_partly_stochastic_samplers_equal_diffusers(eta: float, steps: int) -> None:
    compare("ddim", steps, eta=eta, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
    compare("ddim", steps, eta=eta, timestep_spacing="trailing", prediction_type="v_prediction")
    compare("tcd", steps, eta=eta)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("sampler", MULTISTEP)
def test_solver_orders_equal_diffusers(sampler: str, order: int) -> None:
    for steps in (1, 2, 3, 5, 6, 7, 14, 15, 16):
        compare(sampler, steps, solver_order=order)
    compare(sampler, 16, "karras", solver_order=order, prediction_type="v_prediction")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_orders_of_lms_equal_diffusers(order: int) -> None:
    compare("lms", 20, solver_order=order)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("sampler", sorted(set(ORACLES) - set(ENDING)))
def test_classes_that_end_by_their_own_rule_do_so_whatever_the_configuration_says(sampler: str, final: str) -> None:
    compare(sampler, 5, final_sigmas_type=final)


@pytest.mark.parametrize("sampler", ["ddpm", "pndm", "lcm", "tcd"])
def test_classes_without_sigma_schedules_have_none_whatever_the_configuration_says(sampler: str) -> None:
    config: dict[str, Any] = {"use_karras_sigmas": True}
    assert_same_steps(sampler_table(sampler, Choice(steps=20), trained(**config)), scheduler(sampler, 20, **config))


@pytest.mark.parametrize("sampler", ENDING)
def test_ending_at_the_least_trained_level_equals_diffusers(sampler: str) -> None:
    for kind in ORACLES[sampler].kinds:
        # With one step UniPC of diffusers ends at the sigma schedule's last level, which is also the first.
        for steps in (2, 14, 15):
            compare(sampler, steps, kind, final_sigmas_type="sigma_min")


@pytest.mark.parametrize("spacing", OFFSETS)
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("sampler", ["ddim", "pndm", "lcm", "tcd"])
def test_the_level_after_the_last_equals_diffusers(sampler: str, to_one: bool, spacing: str) -> None:
    for steps in (1, 5, 20):
        compare(sampler, steps, set_alpha_to_one=to_one, timestep_spacing=spacing, steps_offset=OFFSETS[spacing])


@pytest.mark.parametrize("config", [{"original_inference_steps": 100}, {"timestep_scaling": 3.0}])
@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_how_a_checkpoint_was_distilled_equals_diffusers(sampler: str, config: dict[str, Any]) -> None:
    for steps in (1, 4, 7, 50):
        compare(sampler, steps, **config)


@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "ddpm", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_singlestep", "lcm", "tcd"]
)
def test_listed_timesteps_equal_diffusers(sampler: str) -> None:
    made = scheduler(sampler, None, levels={"timesteps": list(TIMESTEPS)})
    choice = Choice(kind="normal", steps=len(TIMESTEPS), timesteps=TIMESTEPS)
    assert_same_steps(sampler_table(sampler, choice, trained()), made)


def test_listed_sigmas_equal_diffusers() -> None:
    made = scheduler("euler", None, levels={"sigmas": [*SIGMAS, 0.0]})
    assert_same_steps(sampler_table("euler", Choice(kind="normal", steps=len(SIGMAS), sigmas=SIGMAS), trained()), made)


def test_what_diffusers_has_is_compared() -> None:
    assert set(METHODS) - set(ORACLES) == {"dpmpp_2s_ancestral", "dpmpp_sde", "dpm_fast", "restart"}
    for sampler, oracle in ORACLES.items():
        for predicted in set(PREDICTION_TYPES) - set(oracle.predictions):
            with pytest.raises((NotImplementedError, ValueError), match=r"sample|epsilon"):
                compare(sampler, 3, prediction_type=predicted)


@pytest.mark.parametrize("kind", ["normal", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_bh1_ends_at_the_clean_latent_where_diffusers_ends_in_nan(steps: int, kind: str) -> None:
    """diffusers multiplies its B(h), infinite where no noise is left, by 0."""
    import torch

    made = scheduler("unipc_bh1", steps, kind)
    table = sampler_table("unipc_bh1", Choice(kind=kind, steps=steps), trained())
    run = TableRun(table, np.linspace(-2, 2, 64).reshape(LATENT))
    for timestep in made.timesteps:
        seen, output = run.x, np.cos(3 * run.x)
        theirs = made.step(torch.from_numpy(output), timestep, torch.from_numpy(seen), return_dict=False)[0]
        run.advance(output)
    assert theirs.isnan().all()
    sigma = float(made.sigmas[-2])
    np.testing.assert_allclose(run.x, seen * np.hypot(1, sigma) - sigma * output, rtol=1e-5, atol=1e-5)
