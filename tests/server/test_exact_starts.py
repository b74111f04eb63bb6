"""Image-to-image starts where diffusers' pipelines start it: as many UNet calls, from the same timestep."""

from __future__ import annotations

import pytest

from server.errors import ScheduleError
from server.levels import Choice
from server.samplers import sampler_table
from server.table import TIMESTEP, Table
from tests.fakes import trained
from tests.oracles import ORACLES, scheduler

STRENGTHS = (0.29, 0.3, 0.55, 0.7, 0.8, 1.0)
# diffusers' own start is a defect, see `test_exact_defects`.
SANE = [name for name in ORACLES if name not in ("pndm", "lcm", "tcd")]
SECOND_ORDER = ("heun", "dpm2", "dpm2_ancestral")


def started(sampler: str, steps: int, strength: float) -> Table:
    return sampler_table(sampler, Choice(steps=steps, strength=strength), trained(steps_offset=1))


@pytest.mark.parametrize("steps", [10, 30, 100])
@pytest.mark.parametrize("sampler", SANE)
def test_calls_and_first_timestep_are_those_of_diffusers(sampler: str, steps: int) -> None:
    """`timesteps[(N - int(N * strength)) * order:]` of the whole schedule."""
    made = scheduler(sampler, steps, steps_offset=1)
    for strength in STRENGTHS:
        skipped = steps - min(int(steps * strength), steps)
        expected = [float(timestep) for timestep in made.timesteps][skipped * made.order :]
        table = started(sampler, steps, strength)
        assert table.calls == len(expected), strength
        assert table.lines[:, TIMESTEP].tolist() == pytest.approx(expected, rel=1e-4, abs=2e-3), strength


@pytest.mark.parametrize(("strength", "walked"), [(0.8, 40), (0.29, 14), (0.02, 1), (1.0, 50)])
def test_calls_of_fifty_steps(strength: float, walked: int) -> None:
    assert started("ddim", 50, strength).calls == walked
    assert started("pndm", 50, strength).calls == walked + (walked > 1)
    assert {started(sampler, 50, strength).calls for sampler in SECOND_ORDER} == {2 * walked - 1}


def test_first_timesteps_of_fifty_steps() -> None:
    """The table of the reference: DDIM begins at 781 where diffusers' PNDM would at 801."""
    assert started("ddim", 50, 0.8).lines[0, TIMESTEP] == 781
    assert started("pndm", 50, 0.8).lines[0, TIMESTEP] == 781
    euler = sampler_table("euler", Choice(steps=50, strength=0.8, spacing="leading"), trained(steps_offset=1))
    assert euler.lines[0, TIMESTEP] == 781


@pytest.mark.parametrize("sampler", ["ddim", "heun", "pndm"])
def test_a_strength_that_leaves_no_step_is_refused(sampler: str) -> None:
    with pytest.raises(ScheduleError, match="raise strength"):
        started(sampler, 10, 0.09)
