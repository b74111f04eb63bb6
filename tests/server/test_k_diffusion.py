"""Samplers that diffusers lacks, or has with a defect, against the formulas of k-diffusion and AUTOMATIC1111.

The formulas are written here once more, on arrays, for x = clean + sigma * noise, with the noises given.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from server.levels import Choice
from server.samplers import sampler_table
from server.table import Table
from tests.fakes import TableRun, trained
from tests.oracles import TOLERANCE, apart, assert_same_steps, scheduler

Latent: TypeAlias = npt.NDArray[np.float64]
Model: TypeAlias = Callable[[Latent, float], Latent]
Noises: TypeAlias = Iterator[Latent]

SHAPE = (3, 5)
SIGMAS = trained().sigmas
# Coefficients are in single precision, and some methods read back older latents from them.
CLOSE = 5e-6


def network(seen: Latent, timestep: float) -> Latent:
    """Far from linear, and different at each timestep."""
    output: Latent = np.sin(1.7 * seen + timestep / 300) + 0.3 * np.cos(seen)
    return output


def timestep_of(sigma: float) -> float:
    return float(np.interp(np.log(sigma), np.log(SIGMAS), np.arange(1000)))


def denoised(x: Latent, sigma: float, timestep: float | None = None) -> Latent:
    """The clean latent that the network, which predicts noise, sees."""
    told = timestep_of(sigma) if timestep is None else timestep
    return x - sigma * network(x / np.sqrt(1 + sigma**2), told)


def karras(high: float, low: float, steps: int) -> list[float]:
    """Equation 5 of Karras et al. (2022)."""
    points = [i / max(steps - 1, 1) for i in range(steps)]
    return [float((high ** (1 / 7) + p * (low ** (1 / 7) - high ** (1 / 7))) ** 7) for p in points]


def levels(kind: str, steps: int) -> list[float]:
    """Of Euler's kin with Stable Diffusion's own spacing, as single precision has them, and 0."""
    spaced = [float(SIGMAS[(steps - 1 - i) * (1000 // steps) + 1]) for i in range(steps)]
    chosen = spaced if kind == "normal" else karras(spaced[0], spaced[-1], steps)
    return [float(np.float32(sigma)) for sigma in chosen] + [0.0]


def table_of(sampler: str, kind: str, steps: int, **options: Any) -> Table:
    schedule = trained(timestep_spacing="leading", steps_offset=1)
    return sampler_table(sampler, Choice(kind=kind, steps=steps), schedule, **options)


def stream(seed: int = 1) -> Noises:
    draw = np.random.default_rng(seed)
    while True:
        yield draw.standard_normal(SHAPE)


def start(sigma: float) -> Latent:
    return np.linspace(-2, 2, 15).reshape(SHAPE) * sigma


def followed(table: Table, x: Latent, noises: Noises) -> Latent:
    """The end of a table's run with the network above; noise is taken when the table says so."""
    run = TableRun(table, x)
    for drawn in table.draws:
        run.advance(network(run.input, run.timestep), next(noises) if drawn else None)
    return run.x


def split(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """The level to step down to, and the fresh noise on top of it; k-diffusion's `get_ancestral_step`."""
    up = min(target, eta * target * np.sqrt(1 - (target / sigma) ** 2))
    return float(np.sqrt(target**2 - up**2)), float(up)


def second_order_ancestral(x: Latent, sigmas: list[float], noises: Noises, eta: float) -> Latent:
    """k-diffusion's `sample_dpmpp_2s_ancestral`."""
    for sigma, target in pairwise(sigmas):
        clean = denoised(x, sigma)
        down, up = split(sigma, target, eta)
        if down == 0:
            x = clean
            continue
        h = np.log(sigma / down)
        middle = sigma * np.exp(-h / 2)
        clean = denoised(middle / sigma * x - np.expm1(-h / 2) * clean, middle)
        x = down / sigma * x - np.expm1(-h) * clean + up * next(noises)
    return x


def stochastic(x: Latent, sigmas: list[float], noises: Noises, eta: float) -> Latent:
    """k-diffusion's `sample_dpmpp_sde` with r = 1/2: both noises of a step come from one Brownian path in sigma."""
    for sigma, target in pairwise(sigmas):
        clean = denoised(x, sigma)
        if target == 0:
            x = clean
            continue
        middle = float(np.exp((np.log(sigma) + np.log(target)) / 2))
        path = np.zeros(SHAPE), np.zeros(SHAPE)
        if eta:
            path = np.sqrt(sigma - middle) * next(noises), np.sqrt(middle - target) * next(noises)
        down, up = split(sigma, middle, eta)
        halfway = down / sigma * x - np.expm1(np.log(down / sigma)) * clean
        clean = denoised(halfway + up * path[0] / np.sqrt(sigma - middle), middle)
        down, up = split(sigma, target, eta)
        x = down / sigma * x - np.expm1(np.log(down / sigma)) * clean + up * sum(path) / np.sqrt(sigma - target)
    return x


def fast(x: Latent, steps: int, noises: Noises, eta: float) -> Latent:
    """k-diffusion's `sample_dpm_fast`, from the highest trained level to the lowest."""
    count = steps // 3 + 1
    ends = np.exp(np.linspace(np.log(SIGMAS[-1]), np.log(SIGMAS[0]), count + 1))
    orders = [3] * (count - 2) + [2, 1] if steps % 3 == 0 else [3] * (count - 1) + [steps % 3]
    for order, (sigma, target) in zip(orders, pairwise(ends), strict=True):
        down = max(split(sigma, target, eta)[0], float(SIGMAS[0])) if eta else target
        h = float(np.log(sigma / down))

        def noise(x: Latent, at: float) -> Latent:
            return (x - denoised(x, at)) / at

        first = noise(x, sigma)
        r1 = 1 / 2 if order == 2 else 1 / 3
        moved = x - down * np.expm1(h) * first
        if order > 1:
            middle = sigma * np.exp(-r1 * h)
            second = noise(x - middle * np.expm1(r1 * h) * first, middle) - first
        if order == 2:
            moved = moved - down / (2 * r1) * np.expm1(h) * second
        if order == 3:
            r2 = 2 / 3
            later = sigma * np.exp(-r2 * h)
            there = x - later * np.expm1(r2 * h) * first
            there = there - later * (r2 / r1) * (np.expm1(r2 * h) / (r2 * h) - 1) * second
            moved = moved - down / r2 * (np.expm1(h) / h - 1) * (noise(there, later) - first)
        x = moved + (np.sqrt(target**2 - down**2) * next(noises) if eta else 0)
    return x


def heun(x: Latent, sigma: float, target: float) -> Latent:
    d = (x - denoised(x, sigma)) / sigma
    reached = x + (target - sigma) * d
    if target == 0:
        return reached
    return x + (target - sigma) * (d + (reached - denoised(reached, target)) / target) / 2


def restarted(x: Latent, sigmas: list[float], noises: Noises) -> Latent:
    """AUTOMATIC1111's `restart_sampler` with the restarts that it chooses by itself."""
    steps = len(sigmas) - 1
    spent, times = (0, 0) if steps < 20 else (steps // 4, 2) if steps >= 36 else (9, 1)
    if times:
        sigmas = [*karras(sigmas[0], sigmas[-2], steps - spent * times), 0.0]
    low, high = (int(np.argmin(np.abs(np.array(sigmas) - sigma))) for sigma in (0.1, 2.0))
    again = karras(sigmas[high], sigmas[low], spent + 1) if times else []
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        x = heun(x, sigma, target)
        for _ in range(times if i + 1 == low else 0):
            x = x + np.sqrt(again[0] ** 2 - again[-1] ** 2) * next(noises)
            for here, there in pairwise(again):
                x = heun(x, here, there)
    return x


@pytest.mark.parametrize("eta", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("kind", ["normal", "karras"])
@pytest.mark.parametrize(
    ("sampler", "formula"), [("dpmpp_2s_ancestral", second_order_ancestral), ("dpmpp_sde", stochastic)]
)
def test_second_order_steps_equal_k_diffusion(sampler: str, formula: Any, kind: str, steps: int, eta: float) -> None:
    sigmas = levels(kind, steps)
    table = table_of(sampler, kind, steps, eta=eta)
    assert table.calls == 2 * steps - 1
    assert table.initial_scale == pytest.approx(np.hypot(sigmas[0], 1), rel=1e-6)
    assert any(table.draws[:-1]) == (eta > 0 and steps > 1)
    expected = formula(start(sigmas[0]), sigmas, stream(), eta)
    assert apart(followed(table, start(sigmas[0]), stream()), expected) <= CLOSE


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 20, 30])
def test_dpm_fast_equals_k_diffusion(steps: int, eta: float) -> None:
    table = sampler_table("dpm_fast", Choice(kind="normal", steps=steps), trained(), eta=eta)
    assert table.calls == steps
    assert sum(table.draws) == (steps // 3 + 1 if eta else 0)
    expected = fast(start(float(SIGMAS[-1])), steps, stream(), eta)
    assert apart(followed(table, start(float(SIGMAS[-1])), stream()), expected) <= CLOSE


@pytest.mark.parametrize(("steps", "draws"), [(1, 0), (12, 0), (19, 0), (20, 1), (30, 1), (35, 1), (36, 2), (50, 2)])
@pytest.mark.parametrize("kind", ["normal", "karras"])
def test_restart_equals_automatic1111(kind: str, steps: int, draws: int) -> None:
    sigmas = levels(kind, steps)
    table = table_of("restart", kind, steps)
    assert table.calls == 2 * steps - 1
    assert sum(table.draws) == draws
    assert apart(followed(table, start(sigmas[0]), stream()), restarted(start(sigmas[0]), sigmas, stream())) <= CLOSE


def test_the_noises_of_a_stochastic_step_lie_on_one_path() -> None:
    """Without a network (the clean latent is 0), from 0: the latent is noise alone, written in the two draws."""
    sigmas = levels("normal", 5)
    schedule = trained(prediction_type="sample", timestep_spacing="leading", steps_offset=1)
    table = sampler_table("dpmpp_sde", Choice(steps=5), schedule)
    run = TableRun(table, np.zeros(2))
    run.advance(np.zeros(2), np.array([1.0, 0.0]))
    middle = np.sqrt(sigmas[0] * sigmas[1])
    np.testing.assert_allclose(run.x, [split(sigmas[0], middle, 1)[1], 0], rtol=1e-6)
    run.advance(np.zeros(2), np.array([0.0, 1.0]))
    assert np.hypot(*run.x) == pytest.approx(split(sigmas[0], sigmas[1], 1)[1], rel=1e-6)
    # W(a) and W(b), scaled to unit variance, correlate as sqrt(a / b).
    correlation = run.x[0] / np.hypot(*run.x)
    assert correlation == pytest.approx(np.sqrt((sigmas[0] - middle) / (sigmas[0] - sigmas[1])), rel=1e-6)


@pytest.mark.parametrize("steps", [4, 15, 20])
def test_the_third_order_of_the_sde_is_k_diffusions(steps: int) -> None:
    """diffusers 0.42.1 has -0.5 for +0.5 in the last coefficient, which then does not vanish with the step.

    The second step is diffusers' second order, and the last the clean latent.
    """
    sigmas = [float(np.float32(sigma)) for sigma in karras(float(SIGMAS[-1]), float(SIGMAS[0]), steps)] + [0.0]
    x, noises, past, spans = start(1.0) * np.hypot(1, sigmas[0]), stream(), list[Latent](), list[float]()
    for i, (sigma, target) in enumerate(pairwise(sigmas)):
        past = [denoised(x, sigma, round(timestep_of(sigma))), *past]
        fresh = next(noises)
        if target == 0:
            x = past[0]
            break
        h = float(np.log(sigma / target))
        x = np.exp(-2 * h) * x - np.expm1(-2 * h) * past[0] + target * np.sqrt(-np.expm1(-2 * h)) * fresh
        if i > 0:
            r0 = spans[0] / h
            change = (past[0] - past[1]) / r0
        # Fewer than 15 steps end with lower orders.
        if i == 1 or (i > 1 and steps < 15 and steps - i <= 2):
            x = x - 0.5 * np.expm1(-2 * h) * change
        elif i > 1:
            r1 = spans[1] / h
            older = (past[1] - past[2]) / r1
            d1, d2 = change + (change - older) * r0 / (r0 + r1), (change - older) / (r0 + r1)
            phi_2 = np.expm1(-2 * h) / (2 * h) + 1
            x = x + phi_2 * d1 - (phi_2 / (2 * h) - 0.5) * d2
        spans = [h, *spans]
    table = sampler_table("dpmpp_3m_sde", Choice(kind="karras", steps=steps), trained())
    assert table.draws == (True,) * steps
    assert apart(followed(table, start(1.0), stream()), x) <= CLOSE


def test_where_the_third_order_of_the_sde_differs_from_diffusers() -> None:
    """Should diffusers correct its coefficient, this fails: then the sampler belongs into the common comparison."""
    table = sampler_table("dpmpp_3m_sde", Choice(kind="karras", steps=20), trained())
    assert_same_steps(table, scheduler("dpmpp_3m_sde", 20, "karras"), calls=2)
    with pytest.raises(AssertionError):
        assert_same_steps(table, scheduler("dpmpp_3m_sde", 20, "karras"), calls=3)


def test_two_steps_of_dpm2_ancestral_are_k_diffusions() -> None:
    """From 14.6 to 0.03 diffusers loses the level between to single precision: by half a percent, 1.5 timesteps."""
    high, low = float(np.float32(SIGMAS[-1])), float(np.float32(SIGMAS[0]))
    down, up = low**2 / high, low * np.sqrt(1 - (low / high) ** 2)
    middle = np.sqrt(high * down)
    x, noises = start(high), stream()
    d = (x - denoised(x, high)) / high
    halfway = x + (middle - high) * d
    x = x + (down - high) * (halfway - denoised(halfway, middle)) / middle + up * next(noises)
    table = sampler_table("dpm2_ancestral", Choice(kind="normal", steps=2, spacing="linspace"), trained())
    assert table.calls == 3
    assert table.lines[1, 0] == pytest.approx(timestep_of(middle), abs=1e-3)
    made = scheduler("dpm2_ancestral", 2)
    assert abs(float(made.sigmas_interpol[0]) / middle - 1) > 100 * TOLERANCE
    assert apart(followed(table, start(high), stream()), denoised(x, low, 0)) <= CLOSE
