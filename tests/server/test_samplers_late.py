"""Tables that start late against diffusers 0.42.1, as its image-to-image and inpainting walk its schedulers."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from server.levels import Choice
from server.samplers import METHODS, sampler_table
from server.table import C_IN, TIMESTEP, Table
from tests.fakes import TableRun, trained
from tests.oracles import LATENT, ORACLES, apart, assert_same_steps, begin_at, scheduler, sharpened

# Where diffusers begins late with a defect: the end of this file shows them.
DEFECTIVE = ("lms", "pndm")
LATE = sorted(set(ORACLES) - set(DEFECTIVE))
STRENGTHS = (0.3, 0.5, 0.8, 1.0)
# Two sides of where diffusers' multistep methods take steps for few; all of them count, not only those walked.
COUNTS = {"epsilon": 20, "v_prediction": 12}


def config(**changes: Any) -> dict[str, Any]:
    return {"timestep_spacing": "leading", "steps_offset": 1, **changes}


def late(sampler: str, steps: int, strength: float, solver_order: int | None = None, **changes: Any) -> Table:
    choice = Choice(kind=changes.pop("kind", "normal"), steps=steps, strength=strength)
    return sampler_table(sampler, choice, trained(**config(**changes)), solver_order=solver_order)


def begins(made: Any, steps: int, strength: float) -> int:
    """Which of its timesteps is the first: diffusers' `get_timesteps`."""
    start: int = (steps - min(int(steps * strength), steps)) * made.order
    return start


def comparable(sampler: str, calls: int) -> int:
    """How many calls diffusers does as its papers say; see `test_samplers_diffusers`."""
    if sampler == "dpmpp_3m_sde":
        return min(calls, 2)
    return calls - 1 if sampler == "unipc_bh1" else calls


@pytest.mark.parametrize("prediction_type", COUNTS)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("sampler", LATE)
def test_late_tables_equal_diffusers(sampler: str, strength: float, prediction_type: str) -> None:
    steps = COUNTS[prediction_type]
    made = scheduler(sampler, steps, **config(prediction_type=prediction_type))
    table = late(sampler, steps, strength, prediction_type=prediction_type)
    walked = int(steps * strength)
    assert table.calls == (walked if made.order == 1 else 2 * walked - 1)
    assert_same_steps(table, made, begin=begins(made, steps, strength), calls=comparable(sampler, table.calls))


@pytest.mark.parametrize("sampler", sorted({*LATE} - {"ddim", "ddpm", "lcm", "tcd", "euler_ancestral"}))
def test_late_tables_on_other_levels_equal_diffusers(sampler: str) -> None:
    for kind, steps in (("karras", 11), ("exponential", 17)):
        made = scheduler(sampler, steps, kind, **config())
        table = late(sampler, steps, 0.6, kind=kind)
        assert_same_steps(table, made, begin=begins(made, steps, 0.6), calls=comparable(sampler, table.calls))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("sampler", ["deis", "dpmpp_singlestep", "unipc"])
def test_blocks_of_any_order_are_entered_as_in_diffusers(sampler: str, order: int) -> None:
    for steps in (9, 16):
        for walked in range(1, steps):
            strength = (walked + 0.5) / steps
            made = scheduler(sampler, steps, **config(), solver_order=order)
            table = late(sampler, steps, strength, order)
            assert_same_steps(table, made, begin=begins(made, steps, strength))


@pytest.mark.parametrize("sampler", ["euler", "ddpm", "dpmpp_2m", "lcm"])
def test_listed_timesteps_are_cut_as_diffusers_cuts_them(sampler: str) -> None:
    listed = (999, 850, 705, 400, 333, 120, 17)
    made = scheduler(sampler, None, levels={"timesteps": list(listed)})
    # `steps` is not heeded: seven are listed.
    table = sampler_table(sampler, Choice(kind="normal", steps=50, timesteps=listed, strength=0.5), trained())
    assert table.lines[:, TIMESTEP].tolist() == [333, 120, 17]
    assert_same_steps(table, made, begin=4)


def told_levels(made: Any, begin: int) -> Iterator[list[float]]:
    """(alpha, sigma) that `add_noise` brings a picture to: before the first step, then after each for the next one."""
    import torch

    picture, noise = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    timesteps = made.timesteps[begin:]
    begin_at(sharpened(made), begin)
    for i, timestep in enumerate(timesteps):
        yield made.add_noise(picture, noise, timesteps[i : i + 1])[0].tolist()
        made.step(noise, timestep, made.scale_model_input(picture, timestep))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", ORACLES)
def test_pictures_are_brought_to_the_levels_of_diffusers(sampler: str, strength: float) -> None:
    for spacing, steps in (("leading", 20), ("linspace", 13)):
        if sampler == "pndm" and strength < 1:
            continue
        settings = config(timestep_spacing=spacing)
        made = scheduler(sampler, steps, **settings)
        levels = late(sampler, steps, strength, **settings).levels
        theirs = np.array(list(told_levels(made, begins(made, steps, strength))))
        # Every other call of dpm2 is in the middle of a step, where diffusers goes wrong; see below.
        every = 2 if sampler == "dpm2" else 1
        np.testing.assert_allclose(levels[:-1:every], theirs[::every], rtol=1e-6, atol=1e-9)
        assert levels[-1].tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["karras", "beta"])
@pytest.mark.parametrize("sampler", [name for name, oracle in ORACLES.items() if "karras" in oracle.kinds])
def test_pictures_are_brought_to_other_levels_of_diffusers(sampler: str, kind: str) -> None:
    made = scheduler(sampler, 12, kind, **config())
    levels = late(sampler, 12, 0.8, kind=kind).levels
    theirs = np.array(list(told_levels(made, begins(made, 12, 0.8))))
    every = 2 if sampler == "dpm2" else 1
    # That of SA is at whole timesteps, ours where the latent is.
    close = 0.05 if sampler == "sa" else 1e-6
    np.testing.assert_allclose(levels[:-1:every], theirs[::every], rtol=close, atol=1e-9)


def test_a_known_region_has_the_noise_of_the_middle_of_a_step() -> None:
    """diffusers has brought it to the end of the step by then, which is the middle of the ancestral method alone."""
    theirs, table = np.array(list(told_levels(scheduler("dpm2", 20, **config()), 0)))[:, 1], late("dpm2", 20, 1.0)
    sigmas = table.levels[:, 1].astype(np.float64)
    np.testing.assert_allclose(table.lines[:, C_IN], 1 / np.hypot(1, sigmas[:-1]), rtol=1e-6)
    np.testing.assert_allclose(sigmas[1:-2:2], np.sqrt(sigmas[:-3:2] * sigmas[2:-1:2]), rtol=1e-6)
    np.testing.assert_allclose(theirs[1::2], sigmas[2:-1:2], rtol=1e-6)


# Those that read back what was blended over, among them.
BLENDED = [*((sampler, None) for sampler in sorted({*ORACLES} - {"dpm2"})), ("dpmpp_singlestep", 3), ("unipc", 3)]


@pytest.mark.parametrize(("sampler", "order"), BLENDED)
def test_blending_after_every_call_equals_diffusers(sampler: str, order: int | None) -> None:
    """Its 4-channel inpainting, with outputs that depend on what the network sees. The mask is 0 or 1.

    Where it is 1 nothing is blended over, and where it is 0 everything is; so lines that read latents back are right.
    """
    import torch

    steps, strength = 20, 1.0 if sampler in DEFECTIVE else 0.8
    made = scheduler(sampler, steps, **config(**({} if order is None else {"solver_order": order})))
    table = late(sampler, steps, strength, order)
    begin = begins(made, steps, strength)
    begin_at(sharpened(made), begin)
    timesteps = made.timesteps[begin:]
    draw = np.random.default_rng(3)
    picture, noise = draw.standard_normal(LATENT), draw.standard_normal(LATENT)
    mask = (draw.random(LATENT) < 0.5).astype(np.float64)
    theirs = made.add_noise(torch.from_numpy(picture), torch.from_numpy(noise), timesteps[:1])
    alpha, sigma = table.levels[0].astype(np.float64)
    run = TableRun(table, alpha * picture + sigma * noise)
    fresh = np.zeros(LATENT)
    with patch(f"{type(made).__module__}.randn_tensor", lambda *_, **__: torch.from_numpy(fresh), create=True):
        for call in range(comparable(sampler, table.calls)):
            seen = made.scale_model_input(theirs, timesteps[call]).numpy()
            assert apart(run.input, seen) <= 1e-5, call
            fresh = draw.standard_normal(LATENT)
            output = np.tanh(seen) + 0.3 * np.cos(3 * np.roll(seen, 1, -1))
            theirs = made.step(torch.from_numpy(output), timesteps[call], theirs, return_dict=False)[0]
            run.advance(output, fresh if table.draws[call] else None)
            known = torch.from_numpy(picture)
            if call + 1 < table.calls:
                known = made.add_noise(known, torch.from_numpy(noise), timesteps[call + 1 : call + 2])
            theirs = torch.where(torch.from_numpy(mask) == 1, theirs, known)
            alpha, sigma = table.levels[call + 1].astype(np.float64)
            run.x = np.where(mask == 1, run.x, alpha * picture + sigma * noise)
            assert apart(run.x, theirs.numpy()) <= 1e-5, call


def test_what_reads_back_is_told() -> None:
    reading = {name for name in METHODS if late(name, 12, 0.8).recalls}
    assert reading == {"dpmpp_sde", "dpm_fast", "pndm"}
    assert late("dpmpp_singlestep", 12, 1.0, 3).recalls


def test_pndm_begins_where_the_strength_says_and_diffusers_a_step_too_early() -> None:
    """diffusers cuts a list in which the second timestep stands twice, and then makes the first call twice again."""
    import torch

    made = scheduler("pndm", 50, **config())
    table = late("pndm", 50, 0.8)
    theirs = made.timesteps[begins(made, 50, 0.8) :].tolist()
    assert (len(theirs), theirs[:3]) == (41, [801, 781, 761])
    assert (table.calls, table.lines[:3, TIMESTEP].tolist()) == (41, [781, 761, 761])
    # Cut before the timestep is doubled, its list is ours.
    made.timesteps = torch.cat([made.timesteps[11:13], made.timesteps[12:]])
    assert_same_steps(table, made)
    levels = np.array(list(told_levels(scheduler("pndm", 50, **config()), 0)))
    np.testing.assert_allclose(table.levels[[0, 1, 2, 3]], levels[[11, 12, 12, 13]], rtol=1e-6)


@pytest.mark.parametrize("steps", [3, 20, 33])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_late_pndm_on_other_spacings_equals_diffusers_lists_cut_before_they_are_doubled(
    spacing: str, steps: int
) -> None:
    import torch

    made = scheduler("pndm", steps, timestep_spacing=spacing, prediction_type="v_prediction")
    walked = int(steps * 0.7)
    last = made.timesteps[len(made.timesteps) - walked :]
    made.timesteps = torch.cat([last[:2], last[1:]]) if walked > 1 else last
    table = late("pndm", steps, 0.7, timestep_spacing=spacing, steps_offset=0, prediction_type="v_prediction")
    assert_same_steps(table, made)


def test_lms_begins_with_the_first_order_wherever_it_begins() -> None:
    """diffusers begins late with coefficients of an order for which it has no derivatives yet."""
    table = late("lms", 50, 0.8)
    made = scheduler("lms", 50, **config())
    with pytest.raises(AssertionError):
        assert_same_steps(table, made, begin=10)
    # With its levels cut beforehand it begins as ours.
    made = scheduler("lms", 50, **config())
    made.sigmas, made.timesteps = made.sigmas[10:], made.timesteps[10:]
    begin_at(made, 0)
    with patch.object(type(made), "init_noise_sigma", table.initial_scale):
        assert_same_steps(table, made)
