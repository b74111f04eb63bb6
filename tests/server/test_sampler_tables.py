"""server.samplers: what holds for the table of every sampler on any levels."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from server.errors import ScheduleError, ServerError
from server.levels import KINDS, Choice
from server.samplers import METHODS, sampler_table
from server.table import COLUMNS, TIMESTEP, A, N
from tests.fakes import trained

SD = trained(steps_offset=1, set_alpha_to_one=True)
DISTILLED = ("lcm", "tcd")
# Samplers that draw noise unless eta is 0; those without eta always do.
ETA = ("euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "tcd")
STOCHASTIC = (*ETA, "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "sa", "ddpm", "lcm")


@pytest.mark.parametrize("sampler", METHODS)
@pytest.mark.parametrize("steps", [1, 12])
def test_noise_is_drawn_by_stochastic_samplers_alone(sampler: str, steps: int) -> None:
    choice = Choice(kind="normal", steps=steps, spacing="trailing")
    table = sampler_table(sampler, choice, SD)
    used = (table.lines[:, N] != 0).tolist()
    assert any(table.draws[:-1]) == any(used[:-1]) == (sampler in STOCHASTIC and table.calls > 1)
    assert all(drawn for drawn, of_use in zip(table.draws, used, strict=True) if of_use)
    if "eta" in METHODS[sampler].options:
        assert not any(sampler_table(sampler, choice, SD, eta=0.0).draws)
        assert any(sampler_table(sampler, choice, SD, eta=0.5).draws[:-1]) == (table.calls > 1)


# As AUTOMATIC1111 and diffusers count; for restart see `test_k_diffusion`.
TWICE = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", METHODS)
def test_every_number_of_steps_gives_a_finite_table(sampler: str, spacing: str) -> None:
    schedule = trained(timestep_spacing=spacing, steps_offset=1, prediction_type="v_prediction")
    for steps in (1, 2, 3, 4, 5, 6, 7, 14, 15, 16, 20, 25, 36, 50, *(() if sampler in DISTILLED else (333,))):
        table = sampler_table(sampler, Choice(kind="normal", steps=steps), schedule)
        calls = 2 * steps - 1 if sampler in TWICE else steps + (sampler == "pndm" and steps > 1)
        assert table.calls == calls or sampler == "restart", steps
        assert table.lines.shape == (table.calls, len(COLUMNS))
        assert np.isfinite(table.lines).all(), steps
        assert np.isfinite(table.initial_scale)
        assert 0 <= table.lines[:, TIMESTEP].min() <= table.lines[:, TIMESTEP].max() <= 999


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("sampler", sorted(set(METHODS) - {"ddpm", "pndm", *DISTILLED}))
def test_every_kind_of_levels_gives_a_finite_table(sampler: str, final: str) -> None:
    wrong = {}
    for kind, steps in itertools.product(KINDS, (1, 20)):
        try:
            table = sampler_table(sampler, Choice(kind=kind, steps=steps, final=final), SD)
        except (ArithmeticError, ValueError) as failure:
            wrong[kind, steps] = repr(failure)
        else:
            if not np.isfinite(table.lines).all():
                wrong[kind, steps] = "not finite"
    assert wrong == {}


# Levels that a request may list or bend: beyond the trained ones, twice the same in single precision or once whole.
STRANGE = {
    "high": Choice(steps=3, sigmas=(9000.0, 14.6, 0.5)),
    "low": Choice(steps=2, sigmas=(5.0, 0.001)),
    "equal": Choice(steps=3, sigmas=(5.0, 4.99999999, 1.0)),
    "equal when whole": Choice(steps=3, timesteps=(900.9, 900.1, 5.0)),
    "dense": Choice(steps=4, timesteps=(999.0, 998.0, 1.0, 0.0)),
    "last": Choice(steps=1, timesteps=(0.0,)),
    "bent in": Choice(kind="karras", steps=20, rho=0.01),
    "bent out": Choice(kind="polyexponential", steps=20, rho=100.0),
}


@pytest.mark.parametrize("final", [None, "zero", "sigma_min"])
@pytest.mark.parametrize("strange", STRANGE)
def test_strange_levels_give_a_finite_table_or_are_refused(strange: str, final: str | None) -> None:
    choice = replace(STRANGE[strange], kind=STRANGE[strange].kind or "normal", final=final)
    wrong = {}
    for sampler, method in METHODS.items():
        if method.rule is None and sampler != "ddim" and not choice.timesteps:
            continue
        try:
            table = sampler_table(sampler, choice, SD)
        except ServerError:
            continue
        except (ArithmeticError, LookupError, ValueError) as failure:
            wrong[sampler] = repr(failure)
        else:
            if not np.isfinite(table.lines).all():
                wrong[sampler] = "not finite"
    assert wrong == {}


@pytest.mark.parametrize("sampler", DISTILLED)
def test_distilled_checkpoints_take_no_more_steps_than_they_were_distilled_on(sampler: str) -> None:
    assert sampler_table(sampler, Choice(steps=50), SD).calls == 50
    with pytest.raises(ScheduleError, match=r"num_inference_steps is 51; lcm and tcd take at most 50"):
        sampler_table(sampler, Choice(steps=51), SD)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "pndm"])
def test_samplers_on_trained_timesteps_do_not_heed_the_checkpoints_sigma_schedule(sampler: str) -> None:
    """As diffusers' classes, which have no `use_karras_sigmas`."""
    asking, plain = (
        sampler_table(sampler, Choice(steps=9), schedule).lines
        for schedule in (trained(use_karras_sigmas=True), trained())
    )
    assert np.array_equal(asking, plain)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_the_checkpoint_says_which_levels_where_the_request_does_not(sampler: str) -> None:
    asking = trained(use_karras_sigmas=True)
    by_checkpoint, by_request, plain = (
        sampler_table(sampler, Choice(kind=kind, steps=9), schedule).lines
        for kind, schedule in ((None, asking), ("karras", trained()), ("normal", asking))
    )
    assert np.array_equal(by_checkpoint, by_request)
    assert np.array_equal(plain, sampler_table(sampler, Choice(steps=9), trained()).lines)
    assert not np.allclose(plain[:, A:], by_checkpoint[:, A:])
