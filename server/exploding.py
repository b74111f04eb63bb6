"""Samplers that move x = clean + sigma * noise (variance exploding), as k-diffusion writes them.

`clean` is the network's estimate of the clean latent, `d` the derivative (x - clean) / sigma of the probability flow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from server.levels import Step, exponential, karras
from server.schedule import TrainedSchedule
from server.table import Level, Linear, Trace

# Gauss-Legendre with two points integrates cubics exactly.
GAUSS = 1 / math.sqrt(3)
# Restart goes from the first of these levels back up to the second.
RESTART = (0.1, 2.0)


def _sigmas(steps: list[Step]) -> Iterator[tuple[float, float, float]]:
    for step in steps:
        yield step.timestep, step.level.ratio, step.target.ratio


def _clean(trace: Trace, x: Linear, sigma: float, timestep: float) -> tuple[Linear, Linear]:
    return trace.clean(x, Level(1.0, sigma), timestep)


def ancestral(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """Where to step down to, and how much fresh noise leads up from there to `target`; k-diffusion's split."""
    if eta == 0 or target == 0:
        return target, 0.0
    up = min(target, eta * math.sqrt(target**2 * (sigma**2 - target**2) / sigma**2))
    return math.sqrt(target**2 - up**2), up


def euler(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule) -> Linear:
    """Algorithm 2 (Euler steps, no churn) of Karras et al. (2022)."""
    for t, sigma, target in _sigmas(steps):
        x, clean = _clean(trace, x, sigma, t)
        d = (x - clean) / sigma
        x = x + d * (target - sigma)
    return x


def euler_ancestral(
    trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, eta: float = 1.0
) -> Linear:
    """Ancestral sampling with Euler steps, as in k-diffusion."""
    for t, sigma, target in _sigmas(steps):
        x, clean = _clean(trace, x, sigma, t)
        down, up = ancestral(sigma, target, eta)
        d = (x - clean) / sigma
        x = x + d * (down - sigma) + _fresh(trace, eta) * up
    return x


def _fresh(trace: Trace, eta: float) -> Linear:
    return trace.noise() if eta > 0 else Linear({})


def heun(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule) -> Linear:
    """Algorithm 2 (Heun steps, no churn) of Karras et al. (2022); the last step is Euler's."""
    for i, (t, sigma, target) in enumerate(_sigmas(steps)):
        x = _heun_step(trace, x, (t, sigma), (steps[i + 1].timestep if i + 1 < len(steps) else 0.0, target))
    return x


def _heun_step(trace: Trace, x: Linear, here: tuple[float, float], there: tuple[float, float]) -> Linear:
    """From (timestep, sigma) to (timestep, sigma)."""
    sigma, target = here[1], there[1]
    x, clean = _clean(trace, x, sigma, here[0])
    d = (x - clean) / sigma
    reached = x + d * (target - sigma)
    if target == 0:
        return reached
    reached, clean = _clean(trace, reached, target, there[0])
    half = (target - sigma) / 2
    return Linear.weighted([(x, 1.0), (d, half), (reached, half / target), (clean, -half / target)])


def dpm2(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule) -> Linear:
    """Midpoint steps inspired by DPM-Solver-2, as in k-diffusion (diffusers' KDPM2); the last step is Euler's."""
    for t, sigma, target in _sigmas(steps):
        x = _midpoint_step(trace, x, trained, t, sigma, target, 0.0)
    return x


def dpm2_ancestral(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, eta: float = 1.0) -> Linear:
    """`dpm2` down to k-diffusion's ancestral level, and noise back up."""
    for t, sigma, target in _sigmas(steps):
        x = _midpoint_step(trace, x, trained, t, sigma, target, eta)
    return x


def _midpoint_step(
    trace: Trace, x: Linear, trained: TrainedSchedule, t: float, sigma: float, target: float, eta: float
) -> Linear:
    """The middle is geometric: halfway in log sigma.

    A known region has the middle's noise there; diffusers 0.42.1 has brought it to the level of the step's end by then.
    """
    x, clean = _clean(trace, x, sigma, t)
    d = (x - clean) / sigma
    if target == 0:
        return x + d * (target - sigma)
    down, up = ancestral(sigma, target, eta)
    middle = math.sqrt(sigma * down)
    halfway, clean = _clean(trace, x + d * (middle - sigma), middle, trained.timestep_of(middle))
    step = (down - sigma) / middle
    return Linear.weighted([(x, 1.0), (halfway, step), (clean, -step), (_fresh(trace, eta), up)])


def lms(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, order: int = 4) -> Linear:
    """Linear multistep (Adams-Bashforth with uneven steps), as in k-diffusion; keeps derivatives.

    The first steps are of lower order wherever the walk begins; diffusers 0.42.1 begins image-to-image with the
    coefficients of up to four derivatives where it has one, and ends short of the data's scale.
    """
    derivatives: list[Linear] = []
    sigmas: list[float] = []
    for t, sigma, target in _sigmas(steps):
        x, d = trace.epsilon(x, Level(1.0, sigma), t)
        derivatives, sigmas = [d, *derivatives][:order], [sigma, *sigmas][:order]
        weights = [_integral(sigmas, i, sigma, target) for i in range(len(sigmas))]
        x = Linear.weighted([(x, 1.0), *zip(derivatives, weights, strict=True)])
    return x


def _integral(nodes: list[float], i: int, start: float, end: float) -> float:
    """Of the i-th Lagrange polynomial on up to four nodes, from start to end."""
    half, middle = (end - start) / 2, (start + end) / 2
    low, high, scale = middle - GAUSS * half, middle + GAUSS * half, 1.0
    at_low = at_high = 1.0
    for node in nodes[:i] + nodes[i + 1 :]:
        at_low *= low - node
        at_high *= high - node
        scale *= nodes[i] - node
    return half * (at_low + at_high) / scale


def dpmpp_2s_ancestral(
    trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, eta: float = 1.0
) -> Linear:
    """DPM-Solver++(2S), algorithm 1 of Lu et al. (2022b), to k-diffusion's ancestral level."""
    for t, sigma, target in _sigmas(steps):
        x, clean = _clean(trace, x, sigma, t)
        down, up = ancestral(sigma, target, eta)
        if down == 0:
            x = clean + _fresh(trace, eta) * 0.0
            continue
        middle = math.sqrt(sigma * down)
        halfway = x * (middle / sigma) + clean * (1 - middle / sigma)
        halfway, clean = _clean(trace, halfway, middle, trained.timestep_of(middle))
        x = x * (down / sigma) + clean * (1 - down / sigma) + _fresh(trace, eta) * up
    return x


def dpmpp_sde(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, eta: float = 1.0) -> Linear:
    """Stochastic DPM-Solver++(2S), k-diffusion's `sample_dpmpp_sde` with r = 1/2.

    Both calls of a step move along one Brownian path. k-diffusion draws it from a tree seeded by itself; here its
    increments come from the job's generator, equal in distribution.
    """
    for t, sigma, target in _sigmas(steps):
        x, clean = _clean(trace, x, sigma, t)
        if target in (0.0, sigma):
            x = clean if target == 0 else x
            continue
        middle = math.sqrt(sigma * target)
        down, up = ancestral(sigma, middle, eta)
        first = _fresh(trace, eta)
        halfway = Linear.weighted([(x, down / sigma), (clean, 1 - down / sigma), (first, up)])
        halfway, clean_middle = _clean(trace, halfway, middle, trained.timestep_of(middle))
        down, up = ancestral(sigma, target, eta)
        share = (sigma - middle) / (sigma - target)
        path = [(first, up * math.sqrt(share)), (_fresh(trace, eta), up * math.sqrt(1 - share))]
        # r = 1/2 makes the weight of the first estimate 1 - 1/(2r) = 0.
        x = Linear.weighted([(x, down / sigma), (clean_middle, 1 - down / sigma), *path])
    return x


def dpm_fast(
    trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, eta: float = 0.0, skipped: int = 0
) -> Linear:
    """DPM-Solver-fast, algorithm 3 of Lu et al. (2022a), as in k-diffusion: blocks of three calls, fewer at the end.

    Blocks are even in log sigma over all trained levels, or from the first step's level where some were `skipped`, as
    AUTOMATIC1111 has them; the end is the lowest of these, not the clean latent.
    """
    n = len(steps)
    blocks = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    low = float(trained.sigmas[0])
    high = max(steps[0].level.ratio, low) if skipped else float(trained.sigmas[-1])
    sigmas = exponential(high, low, len(blocks) + 1).tolist()
    for calls, (sigma, target) in zip(blocks, pairwise(sigmas), strict=True):
        down = max(low, ancestral(sigma, target, eta)[0])
        x = _fast_block(trace, x, trained, sigma, down, calls)
        x = x + _fresh(trace, eta) * math.sqrt(target**2 - down**2)
    return x


def _fast_block(trace: Trace, x: Linear, trained: TrainedSchedule, sigma: float, target: float, calls: int) -> Linear:
    """DPM-Solver of order `calls`, its points even in log sigma."""
    h = math.log(sigma / target)

    def noise_at(x: Linear, part: float) -> tuple[Linear, Linear]:
        level = sigma * math.exp(-part * h)
        return trace.epsilon(x, Level(1.0, level), trained.timestep_of(level))

    def moved(part: float, noise: Linear) -> Linear:
        return x - noise * (sigma * math.exp(-part * h) * math.expm1(part * h))

    x, noise = noise_at(x, 0.0)
    if calls == 1:
        return moved(1.0, noise)
    _, first = noise_at(moved(1 / calls, noise), 1 / calls)
    if calls == 2:
        return moved(1.0, noise) - (first - noise) * (target * math.expm1(h))
    part = 2 / 3
    bend = 2 * sigma * math.exp(-part * h) * (math.expm1(part * h) / (part * h) - 1)
    _, second = noise_at(moved(part, noise) - (first - noise) * bend, part)
    return moved(1.0, noise) - (second - noise) * (target / part * (math.expm1(h) / h - 1))


def restart(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule) -> Linear:
    """Heun steps that go back up with fresh noise near the end: Xu et al. (2023), laid out as in AUTOMATIC1111."""
    last = math.inf
    for sigma, target in _restart_path([step.level.ratio for step in steps], steps[-1].target.ratio):
        if last < sigma:
            x = x + trace.noise() * math.sqrt(sigma**2 - last**2)
        x = _heun_step(trace, x, (trained.timestep_of(sigma), sigma), (trained.timestep_of(target), target))
        last = target
    return x


def _restart_path(sigmas: list[float], final: float) -> list[tuple[float, float]]:
    """Pairs of levels to step between. Under 20 steps there is no restart; with 36 or more there are two.

    Some of the steps asked for are spent on going from 2 to 0.1 again; the others are Karras levels.
    """
    n = len(sigmas)
    if n < 20:
        return list(pairwise([*sigmas, final]))
    length, times = (n // 4, 2) if n >= 36 else (9, 1)
    way: list[float] = [*karras(sigmas[0], sigmas[-1], n - length * times).tolist(), 0.0]
    low, high = (min(range(len(way)), key=lambda i: abs(way[i] - sigma)) for sigma in RESTART)
    again = karras(way[high], way[low], length + 1).tolist() if high < low else []
    return [*pairwise(way[: low + 1]), *times * list(pairwise(again)), *pairwise(way[low:])]
