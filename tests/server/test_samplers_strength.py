"""Image-to-image: how many steps a strength leaves, and where tables that start late end."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from server.errors import ScheduleError
from server.levels import Choice
from server.samplers import METHODS, sampler_table, skipped_steps
from server.table import C_IN, TIMESTEP, Level, Table
from tests.fakes import TableRun, trained
from tests.gaussian import DATA, SD, Latent, sigma_at
from tests.oracles import begin_at, scheduler

PLAIN = Choice(kind="normal", steps=50, spacing="leading")
# What these do in a step does not depend on the steps before it.
FORGETFUL = (
    *("euler", "euler_ancestral", "heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"),
    *("ddim", "ddpm", "lcm", "tcd"),
)
KINDS = ("normal", "karras", "exponential", "sgm_uniform", "ddim_uniform")
SPREAD = np.linspace(-2, 2, 9)
TWICE = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")


def late(sampler: str, steps: int, strength: float, **options: Any) -> Table:
    return sampler_table(sampler, Choice("normal", steps, "leading", strength=strength), SD, **options)


def test_steps_are_skipped_as_diffusers_counts_them() -> None:
    for steps in range(1, 151):
        for hundredths in range(1, 101):
            strength = hundredths / 100
            walked = min(int(steps * strength), steps)
            if walked:
                assert skipped_steps(steps, strength) == steps - walked, (steps, strength)


def test_a_strength_in_single_precision_counts_as_the_number_that_was_written() -> None:
    """0.7 is less in float32, and 10 times it less than 7."""
    assert int(10 * float(np.float32(0.7))) == 6
    assert skipped_steps(10, float(np.float32(0.7))) == 3
    for steps in (1, 3, 7, 10, 20, 30, 50, 125, 150):
        for thousandths in range(1, 1000):
            strength = thousandths / 1000
            if int(steps * strength):
                assert skipped_steps(steps, float(np.float32(strength))) == steps - int(steps * strength)
        for walked in range(1, steps):
            share = walked / steps
            assert skipped_steps(steps, share) == steps - int(steps * share)
            assert skipped_steps(steps, float(np.float32(share))) in (steps - walked, steps - walked + 1)


@pytest.mark.parametrize("strength", [0.0, 0.019, -0.5])
def test_a_strength_that_leaves_no_step_is_refused_with_one_that_does(strength: float) -> None:
    with pytest.raises(ScheduleError) as refusal:
        late("euler", 50, strength)
    assert str(refusal.value) == (
        f"strength is {strength:g}, which leaves none of 50 steps to walk; from 0.02 on it leaves one: "
        "raise strength, or the number of steps"
    )
    assert late("euler", 50, 0.02).calls == 1


def test_the_strength_that_a_refusal_names_leaves_one_step() -> None:
    for steps in range(1, 1001):
        with pytest.raises(ScheduleError) as refusal:
            skipped_steps(steps, 0.0)
        told = float(str(refusal.value).split("from ")[1].split(" on")[0])
        for strength in (told, float(np.float32(told))):
            assert steps - skipped_steps(steps, strength) >= 1, steps


@pytest.mark.parametrize("sampler", METHODS)
def test_the_whole_strength_is_the_table_without_one(sampler: str) -> None:
    whole, same = sampler_table(sampler, PLAIN, SD), late(sampler, 50, 1.0)
    assert np.array_equal(whole.moves, same.moves)
    assert np.array_equal(whole.levels, same.levels)
    assert (whole.initial_scale, whole.draws, whole.recalls) == (same.initial_scale, same.draws, same.recalls)


@pytest.mark.parametrize("strength", [0.02, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("sampler", FORGETFUL)
def test_samplers_without_a_past_leave_out_their_first_lines(sampler: str, strength: float) -> None:
    whole, part = late(sampler, 50, 1.0), late(sampler, 50, strength)
    assert part.calls == (int(50 * strength) * 2 - 1 if sampler in TWICE else int(50 * strength))
    for ours, theirs in ((part.moves, whole.moves), (part.levels, whole.levels)):
        assert np.array_equal(ours, theirs[-len(ours) :])
    assert part.draws == whole.draws[-part.calls :]


@pytest.mark.parametrize("sampler", sorted({*METHODS} - {"ddim", "ddpm", "pndm", "lcm", "tcd", "dpm_fast"}))
def test_a_late_table_is_the_table_of_its_levels_alone(sampler: str) -> None:
    """With enough of them, for methods that end otherwise where steps are few; nothing is left of the levels before.

    The singlestep method is entered where a block begins.
    """
    sigmas = tuple(np.geomspace(14.5, 0.1, 30).tolist())
    part = sampler_table(sampler, Choice("normal", sigmas=sigmas, strength=0.8), SD)
    alone = sampler_table(sampler, Choice("normal", sigmas=sigmas[6:]), SD)
    assert np.array_equal(part.moves, alone.moves)
    assert np.array_equal(part.levels, alone.levels)


@pytest.mark.parametrize("sampler", METHODS)
def test_every_strength_gives_a_finite_table(sampler: str) -> None:
    schedule = trained(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    for kind, steps, strength in product(KINDS, (1, 3, 20), (0.05, 0.34, 0.9, 1.0)):
        if steps * strength < 1:
            continue
        for eta in (None, 0.0, 1.0):
            table = sampler_table(sampler, Choice(kind, steps, strength=strength), schedule, eta)
            assert np.isfinite(table.moves).all(), (kind, steps, strength)
            assert np.isfinite(table.levels).all(), (kind, steps, strength)
            assert (np.hypot(*table.levels.T) > 0.99).all()


@pytest.mark.parametrize("sampler", sorted({*METHODS} - {"lcm", "tcd"}))
def test_every_call_sees_a_latent_of_its_level(sampler: str) -> None:
    """Its timestep is that of its level, and its input of unit variance."""
    for strength in (0.3, 1.0):
        table = late(sampler, 50, strength)
        alphas, sigmas = table.levels.astype(np.float64).T
        told = [sigma_at(timestep) for timestep in table.lines[:, TIMESTEP].tolist()]
        np.testing.assert_allclose(sigmas[:-1] / alphas[:-1], told, rtol=2e-4)
        np.testing.assert_allclose(table.lines[:, C_IN], 1 / np.hypot(alphas, sigmas)[:-1], rtol=1e-6)
        assert table.levels.shape == (table.calls + 1, 2)
        assert table.levels[-1].tolist() == [1, 0]


def begun(table: Table, count: int) -> Latent:
    """The first latents that image-to-image makes of pictures and noise."""
    draw = np.random.default_rng(6)
    clean, noise = DATA.mean + DATA.deviation * draw.standard_normal(count), draw.standard_normal(count)
    first: Latent = table.levels[0].astype(np.float64) @ [clean, noise]
    return first


@pytest.mark.parametrize(("steps", "strength"), [(200, 0.8), (200, 0.2)])
@pytest.mark.parametrize("sampler", sorted({*METHODS} - {"lcm", "tcd"}))
def test_pictures_of_the_data_end_as_pictures_of_the_data(sampler: str, steps: int, strength: float) -> None:
    table = late(sampler, steps, strength)
    run = TableRun(table, begun(table, 20_000))
    noise = np.random.default_rng(1)
    for drawn in table.draws:
        run.advance(DATA.output(run.input, run.timestep), noise.standard_normal(20_000) if drawn else None)
    # The steps' own errors are within this, and so are those of 20,000 samples.
    assert run.x.mean() == pytest.approx(DATA.mean, abs=0.02)
    assert run.x.std() == pytest.approx(DATA.deviation, abs=0.025)


def missed(first: Latent, level: Level, end: Latent) -> float:
    """The largest distance of an end from where the exact path through the first latent, at that level, ends."""
    return float(np.abs(end - DATA.path(first / level.alpha, level.ratio, 0.0)).max())


def late_run(sampler: str) -> float:
    """How far from the exact path's end 50 steps of strength 0.8 end, for starts within two deviations."""
    table = late(sampler, 50, 0.8)
    level = Level(*table.levels[0].astype(np.float64).tolist())
    first = SPREAD * float(np.hypot(level.alpha, level.sigma))
    run = TableRun(table, first)
    while run.calls < table.calls:
        run.advance(DATA.output(run.input, run.timestep))
    return missed(first, level, run.x)


def diffusers_run(sampler: str) -> float:
    """As `late_run`, for diffusers' image-to-image, from the level that it begins at."""
    import torch

    made = scheduler(sampler, 50, timestep_spacing="leading", steps_offset=1)
    begin_at(made, 10)
    timesteps = made.timesteps[10:]
    unit = torch.tensor([[1.0, 0.0]]).double()
    level = Level(*made.add_noise(unit, unit.flip(1), timesteps[:1])[0].tolist())
    first = SPREAD * float(np.hypot(level.alpha, level.sigma))
    x = torch.from_numpy(first)
    for timestep in timesteps:
        output = DATA.output(made.scale_model_input(x, timestep).numpy(), float(timestep))
        x = made.step(torch.from_numpy(output), timestep, x, return_dict=False)[0]
    return missed(first, level, x.double().numpy())


@pytest.mark.parametrize(("sampler", "ours", "theirs"), [("lms", 2e-4, 0.05), ("pndm", 0.0035, 0.006)])
def test_defects_of_diffusers_are_not_inherited(sampler: str, ours: float, theirs: float) -> None:
    """What they are, `test_samplers_late` shows call by call; here, what they cost."""
    assert late_run(sampler) < ours
    assert diffusers_run(sampler) > theirs


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "deis"])
def test_without_a_defect_diffusers_misses_as_much(sampler: str) -> None:
    assert diffusers_run(sampler) == pytest.approx(late_run(sampler), rel=1e-3)
