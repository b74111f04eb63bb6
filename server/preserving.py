"""Samplers on trained timesteps that move x = alpha * clean + sigma * noise with alpha^2 + sigma^2 = 1.

DDIM and DDPM as diffusers has them, PNDM (A1111's PLMS), and the few-step samplers of distilled checkpoints.
"""

from __future__ import annotations

import math

from server.levels import Step
from server.schedule import TrainedSchedule
from server.table import Level, Linear, Trace

LEAST_VARIANCE = 1e-20
# Luo et al. (2023): what a latent consistency model takes for the deviation of the data.
LCM_DEVIATION = 0.5
# Coefficients of Adams-Bashforth with even steps, newest output first.
BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ddim(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, eta: float = 0.0) -> Linear:
    """Equations 12 and 16 of Song et al. (2020); eta = 1 is DDPM's variance."""
    for step in steps:
        level, target = step.level, step.target
        x, clean = trace.clean(x, level, step.timestep)
        deviation = eta * math.sqrt(_variance(level, target))
        x = _moved(x, clean, level, target.alpha, math.sqrt(max(0.0, target.sigma**2 - deviation**2)))
        if eta > 0:
            x = x + trace.noise() * deviation
    return x


def _variance(level: Level, target: Level) -> float:
    """Of the true step back from `level` to `target`, given the clean latent."""
    return (target.sigma / level.sigma) ** 2 * (1 - (level.alpha / target.alpha) ** 2)


def ddpm(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule) -> Linear:
    """Equations 6 and 7 of Ho et al. (2020), with the smaller variance; from each level straight to the next one."""
    for i, step in enumerate(steps):
        level = step.level
        target = steps[i + 1].level if i + 1 < len(steps) else Level(1.0, 0.0)
        x, clean = trace.clean(x, level, step.timestep)
        kept = (level.alpha / target.alpha) ** 2
        share = (target.sigma / level.sigma) ** 2
        x = clean * (target.alpha * (1 - kept) / level.sigma**2) + x * (math.sqrt(kept) * share)
        if step.timestep > 0:
            x = x + trace.noise() * math.sqrt(max(_variance(level, target), LEAST_VARIANCE))
    return x


def pndm(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, skipped: int = 0) -> Linear:
    """Pseudo linear multistep, Liu et al. (2022), without Runge-Kutta steps: A1111's PLMS.

    The first step is made twice, the second time with the mean of the outputs at both ends, so there are n + 1
    calls. Raw network outputs are averaged, as diffusers does. Where steps were `skipped` it begins in the same way;
    diffusers 0.42.1 counts the call made twice among the skipped ones, so that it begins a step too early and then
    tells the network a level below the latent's.
    """
    outputs: list[Linear] = []
    for i, step in enumerate(steps):
        x, raw = trace.raw(x, step.level, step.timestep)
        outputs = [raw, *outputs][: len(BASHFORTH)]
        if i == 0 and len(steps) > 1:
            x = _pndm_start(trace, x, raw, steps, trained, trained.length // (skipped + len(steps)))
            continue
        weights = BASHFORTH[len(outputs) - 1]
        mean = Linear.weighted(zip(outputs, weights, strict=True))
        x = _ddim_step(trace, x, mean, step.level, step.target)
    return x


def _pndm_start(
    trace: Trace, x: Linear, raw: Linear, steps: list[Step], trained: TrainedSchedule, stride: int
) -> Linear:
    """The first step, made again from where it began with the mean of two outputs.

    Where timesteps are not `stride` (`length // steps`) apart, diffusers takes the second step to begin that much
    before its end.
    """
    second = int(steps[1].timestep)
    level = trained.level(min(second + stride, trained.length - 1))
    reached = _ddim_step(trace, x, raw, steps[0].level, steps[0].target)
    _, ahead = trace.raw(reached, steps[0].target, float(second), told=steps[1].level)
    return _ddim_step(trace, x, (raw + ahead) / 2, level, steps[1].level)


def _ddim_step(trace: Trace, x: Linear, raw: Linear, level: Level, target: Level) -> Linear:
    return _moved(x, trace.to_clean(x, raw, level), level, target.alpha, target.sigma)


def _moved(x: Linear, clean: Linear, level: Level, alpha: float, sigma: float) -> Linear:
    """As much of the clean latent, and of the noise that x holds beside it."""
    noise = (x - clean * level.alpha) / level.sigma
    return clean * alpha + noise * sigma


def lcm(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule) -> Linear:
    """Multistep sampling of latent consistency models, algorithm 3 of Luo et al. (2023)."""
    for i, step in enumerate(steps):
        x, clean = trace.clean(x, step.level, step.timestep)
        scaled = step.timestep * trained.timestep_scaling
        span = scaled**2 + LCM_DEVIATION**2
        x = clean * (scaled / math.sqrt(span)) + x * (LCM_DEVIATION**2 / span)
        if i + 1 < len(steps):
            x = x * steps[i + 1].level.alpha + trace.noise() * steps[i + 1].level.sigma
    return x


def tcd(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, eta: float = 0.3) -> Linear:
    """Strategic stochastic sampling of trajectory consistency models, algorithm 4 of Zheng et al. (2024)."""
    for i, step in enumerate(steps):
        following = int(steps[i + 1].timestep) if i + 1 < len(steps) else 0
        target, nearer = trained.level(following), trained.level(math.floor((1 - eta) * following))
        x, clean = trace.clean(x, step.level, step.timestep)
        x = _moved(x, clean, step.level, nearer.alpha, nearer.sigma)
        if eta > 0 and i + 1 < len(steps):
            kept = target.alpha / nearer.alpha
            x = x * kept + trace.noise() * math.sqrt(max(0.0, 1 - kept**2))
    return x
