"""server.samplers on data whose best network and exact paths are known."""

from typing import Any

import numpy as np
import pytest

from server.levels import Choice
from server.samplers import METHODS, sampler_table
from server.table import C_IN, TIMESTEP, Table
from tests.fakes import TableRun, trained
from tests.gaussian import DATA, SD, Latent, sigma_at

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# Those that step to the network's last clean latent, by their own rule for where they end.
ENDING_CLEAN = sorted(set(METHODS) - {"deis", "sa", "dpm_fast", "lms", "pndm", "lcm", "tcd"})
SPREAD = np.linspace(-2, 2, 9)


def walk(table: Table, start: Latent, calls: int | None = None, prediction_type: str = "epsilon") -> TableRun:
    """A run with the best network; `start` is of unit variance."""
    run = TableRun(table, start * table.initial_scale)
    noise = np.random.default_rng(1)
    while run.calls < (table.calls if calls is None else calls):
        drawn = noise.standard_normal(start.shape) if table.draws[run.calls] else None
        run.advance(DATA.output(run.input, run.timestep, prediction_type), drawn)
    return run


def error(table: Table, calls: int, last: float | None = None) -> float:
    """The largest distance from the exact path after some calls, over starts within two deviations.

    `last` is the level reached where no call follows.
    """
    run = walk(table, SPREAD, calls)
    timesteps, scale = table.lines[:, TIMESTEP], table.lines[:, C_IN]
    sigmas = [sigma_at(float(timesteps[0])), last or sigma_at(float(timesteps[min(calls, table.calls - 1)]))]
    # Inputs of the network that are not scaled are of unit variance: alpha * (clean + sigma * noise).
    sizes = [np.hypot(1, sigma) if scale[-1] == 1 else 1.0 for sigma in sigmas]
    expected = DATA.path(SPREAD * table.initial_scale * sizes[0], sigmas[0], sigmas[1])
    return float(np.abs(run.x * sizes[1] - expected).max())


# The papers' orders. A multistep method begins with lower ones, so that at most one more than its first step's counts
# in the end; UniPC's corrector adds one.
ORDERS = [
    ("euler", 1, {}),
    ("euler_ancestral", 1, {"eta": 0.0}),
    ("ddim", 1, {}),
    ("heun", 2, {}),
    ("dpm2", 2, {}),
    ("dpm2_ancestral", 2, {"eta": 0.0}),
    ("dpmpp_2s_ancestral", 2, {"eta": 0.0}),
    ("dpmpp_sde", 2, {"eta": 0.0}),
    ("lms", 1, {"solver_order": 1}),
    ("lms", 2, {"solver_order": 2}),
    ("lms", 3, {}),
    ("dpmpp_2m", 2, {}),
    ("dpmpp_3m", 2, {}),
    ("dpmpp_singlestep", 1, {"solver_order": 1}),
    ("dpmpp_singlestep", 2, {}),
    ("dpmpp_singlestep", 2, {"solver_order": 3}),
    ("deis", 1, {"solver_order": 1}),
    ("deis", 2, {}),
    ("deis", 2, {"solver_order": 3}),
    ("unipc", 2, {"solver_order": 1}),
    ("unipc", 3, {}),
    ("unipc", 3, {"solver_order": 3}),
    ("unipc_bh1", 2, {"solver_order": 1}),
    ("unipc_bh1", 3, {}),
    ("unipc_bh1", 3, {"solver_order": 3}),
]


def assert_order(errors: list[float], times: float, order: int) -> None:
    """With `times` as many steps each time, errors fall by that to the power of the order, and are small in the end."""
    orders = np.log(np.array(errors[:-1]) / errors[1:]) / np.log(times)
    assert orders[1:].mean() >= order - 0.2, (errors, orders)
    assert errors[-1] <= (0.02 if order == 1 else 0.002)


@pytest.mark.parametrize(("sampler", "order", "options"), ORDERS)
def test_errors_fall_with_the_order_of_the_method(sampler: str, order: int, options: dict[str, Any]) -> None:
    """Over levels even in log sigma, up to the last level that is not 0."""
    errors = []
    for steps in (10, 20, 40, 80):
        sigmas = tuple(np.geomspace(14.5, 0.1, steps + 1).tolist())
        table = sampler_table(sampler, Choice(kind="normal", steps=steps + 1, sigmas=sigmas), SD, **options)
        errors.append(error(table, table.calls - 1))
    assert_order(errors, 2, order)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("pndm", 2)])
def test_errors_fall_with_the_order_on_trained_timesteps(sampler: str, order: int) -> None:
    """Down to timestep 201, which all these numbers of steps meet."""
    errors = []
    for steps in (25, 50, 100, 200):
        table = sampler_table(sampler, Choice(kind="normal", steps=steps, spacing="leading"), SD)
        errors.append(error(table, table.lines[:, TIMESTEP].tolist().index(201)))
    assert_order(errors, 2, order)


def test_errors_of_dpm_fast_fall_with_the_third_power_of_its_blocks() -> None:
    """4, 7, 14 and 28 blocks, the last of two calls; they end at the lowest trained level."""
    errors = []
    for steps in (11, 20, 41, 83):
        table = sampler_table("dpm_fast", Choice(kind="normal", steps=steps), SD)
        errors.append(error(table, steps, float(SD.sigmas[0])))
    assert_order(errors, 2, 3)


@pytest.mark.parametrize("sampler", ENDING_CLEAN)
@pytest.mark.parametrize("steps", [1, 10, 24])
def test_the_end_is_the_networks_last_clean_latent(sampler: str, steps: int) -> None:
    table = sampler_table(sampler, Choice(kind="normal", steps=steps, spacing="leading"), SD)
    run = walk(table, SPREAD, table.calls - 1)
    sigma = sigma_at(run.timestep)
    last = DATA.clean(run.input * np.hypot(1, sigma), sigma)
    np.testing.assert_allclose(walk(table, SPREAD).x, last, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", sorted(set(METHODS) - {"pndm"}))
def test_the_end_is_the_same_whatever_the_network_predicts(sampler: str) -> None:
    """PNDM averages raw outputs, as diffusers does: there it does matter what they are."""
    ends = []
    for predicted in PREDICTION_TYPES:
        schedule = trained(prediction_type=predicted, set_alpha_to_one=True, steps_offset=1)
        table = sampler_table(sampler, Choice(kind="normal", steps=20, spacing="leading"), schedule)
        ends.append(walk(table, SPREAD, prediction_type=predicted).x)
    np.testing.assert_allclose(ends[1:], [ends[0]] * 2, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("sampler", "steps", "eta"),
    [
        ("euler_ancestral", 500, None),
        ("euler_ancestral", 200, 0.5),
        ("ddpm", 500, None),
        ("ddim", 500, 1.0),
        ("ddim", 200, 0.5),
        ("dpm2_ancestral", 100, None),
        ("dpmpp_2s_ancestral", 100, None),
        ("dpmpp_sde", 100, None),
        ("dpmpp_sde", 100, 0.5),
        ("dpmpp_2m_sde", 100, None),
        ("dpmpp_2m_sde_heun", 100, None),
        ("dpmpp_3m_sde", 100, None),
        ("sa", 100, None),
        ("dpm_fast", 100, 1.0),
        ("restart", 60, None),
    ],
)
def test_samples_are_distributed_as_the_data(sampler: str, steps: int, eta: float | None) -> None:
    start = np.random.default_rng(0).standard_normal(20_000)
    table = sampler_table(sampler, Choice(kind="normal", steps=steps, spacing="leading"), SD, eta)
    drawn = walk(table, start).x
    # The mean of 20,000 deviates by 0.004, their deviation by 0.003; the rest is for the steps' own errors.
    assert drawn.mean() == pytest.approx(DATA.mean, abs=0.02)
    assert drawn.std() == pytest.approx(DATA.deviation, abs=0.02)
    assert np.mean(((drawn - drawn.mean()) / drawn.std()) ** 3) == pytest.approx(0, abs=0.06)
    if eta in (None, 1.0) and sampler not in ("sa", "restart"):
        # Fresh noise all the way: what is left of the start is what is left of it in the first latent.
        assert abs(np.corrcoef(start, drawn)[0, 1]) < 0.1


@pytest.mark.parametrize("sampler", METHODS)
def test_single_precision_is_enough(sampler: str) -> None:
    """Latents are kept in it; methods that read older latents back must not blow its rounding up."""
    table = sampler_table(sampler, Choice(kind="normal", steps=50, spacing="leading"), SD)
    start = np.random.default_rng(4).standard_normal(200)
    exact = walk(table, start).x
    run = TableRun(table, start * table.initial_scale)
    noise = np.random.default_rng(1)
    while run.calls < table.calls:
        drawn = noise.standard_normal(start.shape) if table.draws[run.calls] else None
        run.advance(DATA.output(run.input, run.timestep), drawn)
        run.x = run.x.astype(np.float32).astype(np.float64)
    assert np.abs(run.x - exact).max() <= 1e-4
