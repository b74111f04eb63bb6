"""server.samplers against the schedulers of diffusers, step by step, and against exact solutions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.request import SAMPLER_ALIASES, SAMPLERS, SCHEDULES
from server.samplers import METHODS, sampler_table
from server.table import HISTORY, A, B, N
from tests.fakes import STABLE_DIFFUSION, TableRun, trained

Latent = npt.NDArray[np.float64]

STEPS = (1, 2, 3, 14, 15, 20)
# None: the configuration is silent, and each class of diffusers has a default of its own.
SPACED = [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0), (None, 1)]
CLASSES = {sampler: name for name, sampler in SAMPLER_ALIASES.items()}
DETERMINISTIC = ("euler", "ddim", "dpmpp_2m")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# What diffusers has: its ancestral scheduler cannot predict the clean latent, two of its classes have no Karras levels.
CASES = [
    *(("euler", kind, predicted) for kind in SCHEDULES for predicted in PREDICTION_TYPES),
    *(("euler_ancestral", "normal", predicted) for predicted in ("epsilon", "v_prediction")),
    *(("ddim", "normal", predicted) for predicted in PREDICTION_TYPES),
    *(("dpmpp_2m", kind, predicted) for kind in SCHEDULES for predicted in PREDICTION_TYPES),
]
LATENT = (1, 4, 4, 4)


def oracle(sampler: str, kind: str, steps: int, **config: Any) -> Any:
    """The scheduler of diffusers, ready to make its first step."""
    import diffusers
    import torch

    torch.set_num_threads(1)
    special: dict[str, Any] = {"use_karras_sigmas": True} if kind == "karras" else {}
    if sampler == "ddim":
        special["clip_sample"] = False
    scheduler = getattr(diffusers, CLASSES[sampler])(**{**STABLE_DIFFUSION, **config, **special})
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def apart(ours: Latent, theirs: Any) -> float:
    """The largest difference, relative to the largest value."""
    expected = theirs.numpy().astype(np.float64)
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("spacing", "offset"), SPACED)
@pytest.mark.parametrize(("sampler", "kind", "prediction_type"), CASES)
def test_every_step_equals_diffusers(
    sampler: str, kind: str, prediction_type: str, spacing: str | None, offset: int, steps: int
) -> None:
    import torch

    config: dict[str, Any] = {"steps_offset": offset, "prediction_type": prediction_type}
    if spacing is not None:
        config["timestep_spacing"] = spacing
    if sampler == "ddim" and offset == 1:
        config["set_alpha_to_one"] = False
    scheduler = oracle(sampler, kind, steps, **config)
    table = sampler_table(sampler, kind, steps, trained(**config))
    outputs = torch.Generator().manual_seed(steps)
    theirs = torch.randn(LATENT, generator=outputs) * scheduler.init_noise_sigma
    run = TableRun(table, theirs.numpy().astype(np.float64))
    shared, own = (torch.Generator().manual_seed(7) for _ in range(2))
    extra = {"generator": shared} if sampler == "euler_ancestral" else {}

    assert table.initial_scale == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)
    assert table.calls == len(scheduler.timesteps) == steps
    for call, timestep in enumerate(scheduler.timesteps):
        assert run.timestep == pytest.approx(float(timestep), abs=1e-4)
        assert apart(run.input, scheduler.scale_model_input(theirs, timestep)) <= 1e-5, call
        output = torch.randn(LATENT, generator=outputs)
        theirs = scheduler.step(output, timestep, theirs, return_dict=False, **extra)[0]
        run.advance(output.numpy(), torch.randn(LATENT, generator=own).numpy())
        assert apart(run.x, theirs) <= 1e-5, call


@dataclass(frozen=True)
class Normal:
    """Latents drawn from N(mean, deviation^2), for which the best network and the exact paths are known."""

    mean: float = 0.4
    deviation: float = 0.6

    def output(self, seen: Latent, timestep: float, prediction_type: str) -> Latent:
        """Of the best network, from nothing but its inputs."""
        sigma = float(trained().sigma_at(np.array([timestep]))[0])
        alpha = 1 / np.sqrt(1 + sigma**2)
        x = seen / alpha
        clean = (self.deviation**2 * x + sigma**2 * self.mean) / (self.deviation**2 + sigma**2)
        noise = (x - clean) / sigma
        predicted: Latent = {
            "epsilon": noise,
            "v_prediction": alpha * noise - alpha * sigma * clean,
            "sample": clean,
        }[prediction_type]
        return predicted

    def end(self, x: Latent, sigma: float) -> Latent:
        """Where the path through x = clean + sigma * noise ends when no noise is left."""
        ended: Latent = self.mean + (x - self.mean) * self.deviation / np.hypot(self.deviation, sigma)
        return ended


def walk(sampler: str, kind: str, steps: int, x: Latent, prediction_type: str = "epsilon", **config: Any) -> TableRun:
    """A run along the whole table with the best network; x is of unit variance."""
    schedule = trained(prediction_type=prediction_type, set_alpha_to_one=True, **config)
    table = sampler_table(sampler, kind, steps, schedule)
    run = TableRun(table, x * table.initial_scale)
    noise = np.random.default_rng(3)
    while run.calls < table.calls:
        output = Normal().output(run.input, run.timestep, prediction_type)
        run.advance(output, noise.standard_normal(x.shape))
    return run


def error(sampler: str, kind: str, steps: int, **config: Any) -> float:
    """The largest distance from the exact end of the path, over starts within two deviations."""
    x = np.linspace(-2, 2, 9)
    run = walk(sampler, kind, steps, x, **config)
    schedule = trained(**config)
    levels = METHODS[sampler].schedule(schedule, steps, kind)
    scale = METHODS[sampler].initial_scale(schedule, levels)
    # In the frame without signal decay; a method of unit variance starts at alpha * (clean + sigma * noise).
    sigma = float(levels.sigmas[0])
    start = x * scale * (np.sqrt(1 + sigma**2) if scale == 1 else 1)
    return float(np.abs(run.x - Normal().end(start, sigma)).max())


# Measured, and some way up; one step or one timestep too early or too late gives several times as much.
FURTHEST = {
    ("euler", "normal"): (0.07, 0.019),
    ("euler", "karras"): (0.07, 0.019),
    ("ddim", "normal"): (0.07, 0.019),
    ("ddim", "karras"): (0.07, 0.019),
    ("dpmpp_2m", "normal"): (0.03, 0.009),
    ("dpmpp_2m", "karras"): (0.0012, 0.0018),
}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("sampler", "kind"), FURTHEST)
def test_the_exact_path_is_followed_the_closer_the_more_steps(sampler: str, kind: str, spacing: str) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": 1}
    for steps, furthest in zip((50, 200), FURTHEST[sampler, kind], strict=True):
        assert error(sampler, kind, steps, **config) <= furthest, steps


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_end_is_the_same_whatever_the_network_predicts(sampler: str, kind: str) -> None:
    start = np.linspace(-2, 2, 9)
    ends = [walk(sampler, kind, 15, start, predicted, steps_offset=1).x for predicted in PREDICTION_TYPES]
    # DPM-Solver rounds Karras timesteps: the network is told of a level slightly off its input's.
    rounded = (sampler, kind) == ("dpmpp_2m", "karras")
    np.testing.assert_allclose(ends[1:], [ends[0]] * 2, rtol=0, atol=1e-3 if rounded else 2e-5)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_ancestral_samples_are_distributed_as_the_data(kind: str) -> None:
    start = np.random.default_rng(0).standard_normal(20_000)
    drawn = walk("euler_ancestral", kind, 500, start, timestep_spacing="linspace").x
    assert drawn.mean() == pytest.approx(Normal().mean, abs=0.02)
    assert drawn.std() == pytest.approx(Normal().deviation, abs=0.015)
    assert abs(np.corrcoef(start, drawn)[0, 1]) < 0.05


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_fresh_noise_is_asked_for_by_ancestral_steps_alone_and_not_by_the_last(sampler: str, kind: str) -> None:
    asked = sampler_table(sampler, kind, 12, trained()).lines[:, N] > 0
    assert asked.tolist() == [sampler == "euler_ancestral"] * 11 + [False]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_latent_is_the_last_clean_one(sampler: str) -> None:
    table = sampler_table(sampler, "normal", 8, trained(set_alpha_to_one=True))
    assert table.lines[-1, A:B] == pytest.approx([0, 0], abs=1e-12)
    assert table.lines[-1, B : B + HISTORY] == pytest.approx([1, 0, 0, 0])


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_number_of_steps_gives_a_finite_table_with_a_line_per_step(sampler: str, kind: str, spacing: str) -> None:
    schedule = trained(timestep_spacing=spacing, steps_offset=1, prediction_type="v_prediction")
    for steps in (*range(1, 31), 500):
        table = sampler_table(sampler, kind, steps, schedule)
        assert table.calls == steps
        assert np.isfinite(table.lines).all()
        assert np.isfinite(table.initial_scale)


def test_what_requests_may_ask_for_is_what_there_is() -> None:
    assert set(METHODS) == set(SAMPLERS) == set(SAMPLER_ALIASES.values())
    import diffusers

    assert all(hasattr(diffusers, name) for name in SAMPLER_ALIASES)
