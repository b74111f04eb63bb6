"""server.levels: known values, formulas of other tools written here once more, and what holds for any choice."""

import itertools
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from server.levels import (
    BETA_SHAPE,
    DEIS,
    DPM,
    EULER,
    KDPM2,
    KINDS,
    RANGED,
    SINGLESTEP,
    WHOLE,
    Choice,
    Rule,
    Step,
    beta_quantile,
    distilled_timesteps,
    exponential,
    interpolated_steps,
    karras,
    kl_optimal,
    trained_steps,
    whole_timesteps,
)
from server.samplers import sampler_table
from server.table import TIMESTEP, Level, N
from tests.fakes import trained

betaincinv = import_module("scipy.special").betaincinv

SD = trained()
RULES = {"EULER": EULER, "KDPM2": KDPM2, "DPM": DPM, "SINGLESTEP": SINGLESTEP, "DEIS": DEIS}
AYS = {
    "align_your_steps": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "align_your_steps_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
}


def steps_of(rule: Rule, kind: str = "normal", steps: int = 20, **choice: Any) -> list[Step]:
    offset = 1 if choice.get("spacing") == "leading" else 0
    return interpolated_steps(trained(steps_offset=offset), Choice(kind=kind, steps=steps, **choice), rule)


def timesteps(steps: list[Step]) -> list[float]:
    return [step.timestep for step in steps]


def sigmas(steps: list[Step]) -> list[float]:
    return [step.level.ratio for step in steps]


@pytest.mark.parametrize(
    ("rule", "spacing", "first", "last"),
    [
        (EULER, "leading", [951, 901], [51, 1]),
        (EULER, "linspace", [999, 946.421], [52.579, 0]),
        (EULER, "trailing", [999, 949], [99, 49]),
        (DPM, "linspace", [999, 949], [100, 50]),
        (DPM, "leading", [941, 894], [95, 48]),
        (DEIS, "linspace", [999, 949], [100, 50]),
        (DEIS, "leading", [941, 894], [95, 48]),
        # This class of diffusers does not heed the spacing.
        (SINGLESTEP, "leading", [999, 949], [100, 50]),
    ],
)
def test_twenty_steps_have_their_known_timesteps(rule: Rule, spacing: str, first: Any, last: Any) -> None:
    laid = timesteps(steps_of(rule, spacing=spacing))
    assert len(laid) == 20
    assert laid[:2] + laid[-2:] == pytest.approx(first + last, abs=1e-3 if spacing == "linspace" else 0)


@pytest.mark.parametrize(
    ("spacing", "known"),
    [("leading", [951, 901, 851, 801]), ("linspace", [999, 946, 894, 841]), ("trailing", [999, 949, 899, 849])],
)
def test_ddim_rounds_its_timesteps(spacing: str, known: list[int]) -> None:
    schedule = trained(steps_offset=1 if spacing == "leading" else 0)
    assert whole_timesteps(schedule, Choice(steps=20, spacing=spacing))[:4] == known
    assert timesteps(trained_steps(schedule, Choice(kind="normal", steps=20, spacing=spacing)))[:4] == known


@pytest.mark.parametrize(
    ("sampler", "steps", "calls", "first"),
    [
        ("pndm", 20, 21, [951, 901, 901, 851]),
        ("heun", 20, 39, [951, 901, 901, 851]),
        ("dpm2", 20, 39, [951]),
        ("lcm", 4, 4, [999, 759, 499, 259]),
        ("tcd", 4, 4, [999, 759, 499, 259]),
        # AUTOMATIC1111 makes 49 calls for 50 steps of DDIM; a user asked for 50.
        ("ddim", 50, 50, [981, 961]),
        ("ddim", 30, 30, [958, 925]),
    ],
)
def test_calls_are_as_many_as_known(sampler: str, steps: int, calls: int, first: list[float]) -> None:
    schedule = trained(timestep_spacing="leading", steps_offset=1)
    table = sampler_table(sampler, Choice(kind="normal", steps=steps), schedule)
    assert table.calls == calls
    assert table.lines[: len(first), TIMESTEP].tolist() == first


def test_stable_diffusions_own_spacing_has_its_known_sigmas() -> None:
    spaced = sigmas(steps_of(EULER, spacing="leading"))
    assert [spaced[0], spaced[-1]] == pytest.approx([11.0283, 0.0413], abs=5e-5)
    schedule = trained(timestep_spacing="leading", steps_offset=1)
    assert sampler_table("euler", Choice(steps=20), schedule).initial_scale == pytest.approx(11.0736, abs=5e-5)


def test_karras_levels_are_the_known_ones() -> None:
    spaced = sigmas(steps_of(EULER, "karras", 10, spacing="leading"))
    assert [spaced[0], spaced[1], spaced[-1]] == pytest.approx([8.3907, 5.4777, 0.0413], abs=5e-5)
    full = steps_of(DPM, "karras", 10)
    known = [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292]
    assert sigmas(full) == pytest.approx(known, abs=5e-5)
    assert timesteps(full) == [999, 916, 815, 687, 523, 327, 146, 41, 7, 0]


def test_exponential_timesteps_of_the_dpm_family_are_cut() -> None:
    """Euler's kin tells the network 874.74 where these tell it 874."""
    cut, kept = (timesteps(steps_of(rule, "exponential", 10)) for rule in (DPM, EULER))
    assert cut[1] == 874
    assert kept[1] == pytest.approx(874.74, abs=5e-3)
    assert cut == np.trunc(np.round(kept, 6)).tolist()


@pytest.mark.parametrize("schedule", [{}, {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}])
@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_a_sigma_schedule_begins_and_ends_at_the_outermost_timesteps(kind: str, schedule: dict[str, Any]) -> None:
    for steps in (2, 10, 20, 50):
        laid = timesteps(interpolated_steps(trained(**schedule), Choice(kind=kind, steps=steps), DPM))
        assert (laid[0], laid[-1]) == (999, 0), steps


def test_ddims_variance_is_the_known_one() -> None:
    """From 981 to 961; a line's noise has its square root."""
    schedule = trained(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
    line = sampler_table("ddim", Choice(kind="normal", steps=50), schedule, eta=1.0).lines[0]
    assert line[TIMESTEP] == 981
    assert line[N] ** 2 == pytest.approx(0.2065, abs=5e-5)


@pytest.mark.parametrize("kind", AYS)
def test_align_your_steps_are_the_published_levels(kind: str) -> None:
    assert sigmas(steps_of(EULER, kind, 10)) == pytest.approx(AYS[kind], rel=1e-6)
    published = np.log([*AYS[kind], 0.029])[::-1]
    for steps in (1, 7, 20, 33):
        # ComfyUI's: n + 1 levels, log-linear between the published, the last replaced by 0.
        spread = np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, 11), published)
        assert sigmas(steps_of(EULER, kind, steps)) == pytest.approx(np.exp(spread)[::-1][:-1].tolist(), rel=1e-6)


@pytest.mark.parametrize("shape", [0.3, BETA_SHAPE, 0.95])
def test_beta_quantiles_equal_scipys(shape: float) -> None:
    probabilities = np.concatenate([np.linspace(0, 1, 1001), np.geomspace(1e-12, 0.4, 100)])
    np.testing.assert_allclose(
        beta_quantile(probabilities, shape), betaincinv(shape, shape, probabilities), rtol=0, atol=1e-9
    )
    assert BETA_SHAPE == 0.6


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 30, 50])
def test_sigma_schedules_of_comfyui_equal_its_formulas(steps: int) -> None:
    trained_sigmas = SD.sigmas.tolist()
    # Sigma to timestep and back, linearly in log sigma; at whole timesteps' ends these are 999 and 0.
    even = [999 * (1 - i / steps) for i in range(steps)]
    formulas = {
        "simple": [trained_sigmas[-(1 + int(i * 1000 / steps))] for i in range(steps)],
        "ddim_uniform": [trained_sigmas[i] for i in range(1, 1000, 1000 // steps)][::-1],
        "sgm_uniform": [
            trained_sigmas[int(t)] ** (1 - t % 1) * trained_sigmas[min(int(t) + 1, 999)] ** (t % 1) for t in even
        ],
    }
    for kind, expected in formulas.items():
        assert sigmas(steps_of(EULER, kind, steps)) == pytest.approx(expected, rel=1e-6), kind


def test_ddim_uniform_may_have_one_level_more_than_asked() -> None:
    assert len(steps_of(EULER, "ddim_uniform", 30)) == 31
    assert len(steps_of(EULER, "ddim_uniform", 20)) == 20


@pytest.mark.parametrize("steps", [2, 10, 33])
def test_ranged_schedules_equal_their_formulas(steps: int) -> None:
    high, low = 14.6146, 0.0292
    parts = [i / (steps - 1) for i in range(steps)]
    expected = {
        "karras": [(high ** (1 / 7) + p * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for p in parts],
        "exponential": [high * (low / high) ** p for p in parts],
        "kl_optimal": [np.tan(p * np.arctan(low) + (1 - p) * np.arctan(high)) for p in parts],
        "beta": [low + betaincinv(0.6, 0.6, 1 - p) * (high - low) for p in parts],
    }
    for kind, levels in expected.items():
        assert RANGED[kind](high, low, steps, None).tolist() == pytest.approx(levels, rel=1e-9), kind


def test_rho_bends_karras_and_polyexponential_levels() -> None:
    high, low, parts = 10.0, 0.1, np.linspace(0, 1, 9)
    np.testing.assert_allclose(karras(high, low, 9, 3.0), (high ** (1 / 3) * (1 - parts) + low ** (1 / 3) * parts) ** 3)
    np.testing.assert_allclose(exponential(high, low, 9, 2.0), low * (high / low) ** ((1 - parts) ** 2))
    for kind in ("karras", "polyexponential"):
        assert sigmas(steps_of(EULER, kind, 9, rho=3.0)) != pytest.approx(sigmas(steps_of(EULER, kind, 9)), rel=0.1)
    assert sigmas(steps_of(EULER, "exponential", 9, rho=3.0)) == sigmas(steps_of(EULER, "exponential", 9))
    assert sigmas(steps_of(EULER, "polyexponential", 9)) == sigmas(steps_of(EULER, "exponential", 9))
    assert kl_optimal(high, low, 9)[[0, -1]] == pytest.approx([high, low])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_step_lowers_the_noise_for_any_number_of_steps(kind: str, spacing: str) -> None:
    for (name, rule), count in itertools.product(RULES.items(), (1, 2, 3, 10, 50, 333)):
        laid = steps_of(rule, kind, count, spacing=spacing)
        levels = [*sigmas(laid), laid[-1].target.ratio]
        assert len(laid) == count or kind == "ddim_uniform"
        assert np.isfinite(levels).all(), (name, count)
        assert np.all(np.diff(levels[:-1]) < 0), (name, count)
        # Where DEIS keeps the last level it stays there for a step of nothing.
        assert levels[-1] < levels[-2] or (name == "DEIS" and levels[-1] == levels[-2]), (name, count)
        assert 0 <= min(timesteps(laid)) <= max(timesteps(laid)) <= 999
        assert [step.level for step in laid[1:]] == [step.target for step in laid[:-1]]


@pytest.mark.parametrize(
    ("rule", "kind", "choice", "config", "expected"),
    [
        (EULER, "normal", None, None, 0.0),
        (EULER, "karras", "sigma_min", None, 0.0291675),
        (DPM, "normal", None, "sigma_min", 0.0291675),
        (DPM, "normal", "zero", "sigma_min", 0.0),
        (DEIS, "normal", None, None, 0.0291675),
        (DEIS, "karras", None, None, 0.0291675),
        (DEIS, "normal", "zero", None, 0.0),
    ],
)
def test_the_request_then_the_checkpoint_then_the_sampler_say_where_it_ends(
    rule: Rule, kind: str, choice: str | None, config: str | None, expected: float
) -> None:
    schedule = trained(**({} if config is None else {"final_sigmas_type": config}))
    last = interpolated_steps(schedule, Choice(kind=kind, steps=9, final=choice), rule)[-1].target
    assert last.ratio == pytest.approx(expected, rel=1e-5)


def test_the_request_then_the_checkpoint_then_the_sampler_space_timesteps() -> None:
    silent, trailing = trained(), trained(timestep_spacing="trailing")
    assert timesteps(interpolated_steps(silent, Choice(kind="normal"), EULER))[1] == pytest.approx(946.42, abs=0.01)
    assert timesteps(interpolated_steps(trailing, Choice(kind="normal"), EULER))[1] == 949
    assert timesteps(interpolated_steps(trailing, Choice(kind="normal", spacing="leading"), EULER))[1] == 900
    assert whole_timesteps(silent, Choice())[1] == 900
    assert whole_timesteps(trailing, Choice())[1] == 949


def test_listed_levels_are_taken_as_they_are() -> None:
    listed = steps_of(EULER, steps=3, sigmas=(12.0, 3.0, 0.5))
    assert sigmas(listed) == pytest.approx([12.0, 3.0, 0.5], rel=1e-6)
    assert timesteps(listed) == pytest.approx(SD.timestep_at(np.array([12.0, 3.0, 0.5])).tolist())
    assert listed[-1].target == Level(1.0, 0.0)
    assert timesteps(steps_of(EULER, steps=2, timesteps=(900.5, 20.0))) == [900.5, 20.0]
    assert timesteps(steps_of(DPM, steps=2, timesteps=(900.5, 20.0))) == [900.0, 20.0]
    assert whole_timesteps(SD, Choice(steps=2, timesteps=(900.0, 20.0))) == [900, 20]
    assert distilled_timesteps(SD, Choice(steps=2, timesteps=(900.0, 20.0))) == [900, 20]


def test_ddim_aims_a_stride_further_down_and_ends_where_the_checkpoint_says() -> None:
    schedule = trained(steps_offset=1, set_alpha_to_one=False)
    laid = trained_steps(schedule, Choice(kind="normal", steps=30, spacing="leading"))
    assert laid[0].target == schedule.level(958 - 33)
    assert laid[-1].target == Level.at(float(schedule.abar[0]))
    karras_levels = trained_steps(schedule, Choice(kind="karras", steps=12))
    euler = interpolated_steps(schedule, Choice(kind="karras", steps=12), EULER)
    assert [step.level for step in karras_levels] == [step.level for step in euler]
    assert karras_levels[-1].target == Level.at(float(schedule.abar[0]))


def test_ddim_goes_from_each_listed_timestep_to_the_next() -> None:
    schedule = trained(set_alpha_to_one=True)
    laid = trained_steps(schedule, Choice(kind="normal", steps=3, timesteps=(999, 500, 20)))
    assert [step.level for step in laid] == [schedule.level(t) for t in (999, 500, 20)]
    assert [step.target for step in laid] == [schedule.level(500), schedule.level(20), Level(1.0, 0.0)]


def test_kinds_are_all_there() -> None:
    assert set(KINDS) == {"normal", *RANGED, *WHOLE}
    assert len(KINDS) == 11
