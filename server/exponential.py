"""Exponential integrators on x = alpha * clean + sigma * noise: the DPM-Solver++ family and DEIS.

h is a step in log signal-to-noise, log(alpha / sigma); it is infinite where no noise is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from server.levels import Step
from server.schedule import TrainedSchedule
from server.table import Level, Linear, Trace

# Below this diffusers ends multistep methods with lower orders.
FEW_STEPS = 15


def log_step(level: Level, target: Level) -> float:
    """h, from one level to the next."""
    return math.log(level.ratio / target.ratio) if target.sigma > 0 else math.inf


def dpmpp(
    trace: Trace,
    x: Linear,
    steps: list[Step],
    trained: TrainedSchedule,
    *,
    order: int = 2,
    sde: bool = False,
    heun: bool = False,
    skipped: int = 0,
) -> Linear:
    """DPM-Solver++ multistep, algorithm 2 of Lu et al. (2022b), and its SDE form; lower order at both ends.

    Second order is the midpoint form, or with `heun` the form of their appendix. The third order of the SDE has
    k-diffusion's last coefficient, which vanishes with the step; diffusers 0.42.1 has one that does not. Whether steps
    are few is judged with those that were `skipped`, as diffusers does.
    """
    past: list[tuple[Linear, Level]] = []
    n = len(steps)
    few = skipped + n < FEW_STEPS
    for i, step in enumerate(steps):
        x, clean = trace.clean(x, step.level, step.timestep)
        past = [(clean, step.level), *past][:order]
        allowed = len(past)
        if n - i <= 2 and few:
            allowed = min(allowed, n - i)
        if i == n - 1 and step.target.sigma == 0:
            allowed = 1
        x = _dpmpp_step(x, past[:allowed], step.target, sde, heun)
        if sde:
            x = x + trace.noise() * (step.target.sigma * math.sqrt(-math.expm1(-2 * log_step(step.level, step.target))))
    return x


def _dpmpp_step(x: Linear, past: Sequence[tuple[Linear, Level]], target: Level, sde: bool, heun: bool) -> Linear:
    """Without the noise. `past` has the newest estimate first."""
    clean, level = past[0]
    h = log_step(level, target)
    if h == 0:
        return x
    span = 2 * h if sde else h
    x = x * (target.sigma / level.sigma * (math.exp(-h) if sde else 1.0)) - clean * (target.alpha * math.expm1(-span))
    if len(past) == 1:
        return x
    r0 = log_step(past[1][1], level) / h
    d1 = (clean - past[1][0]) / r0
    if len(past) == 2 and not heun:
        return x - d1 * (0.5 * target.alpha * math.expm1(-span))
    slope = math.expm1(-span) / span + 1
    if len(past) == 2:
        return x + d1 * (target.alpha * slope)
    r1 = log_step(past[2][1], past[1][1]) / h
    older = (past[1][0] - past[2][0]) / r1
    d2 = (d1 - older) / (r0 + r1)
    return x + (d1 + d2 * r0) * (target.alpha * slope) - d2 * (target.alpha * (slope / span - 0.5))


def dpmpp_singlestep(
    trace: Trace,
    x: Linear,
    steps: list[Step],
    trained: TrainedSchedule,
    *,
    order: int = 2,
    heun: bool = False,
    skipped: int = 0,
) -> Linear:
    """DPM-Solver++ singlestep, algorithm 1 of Lu et al. (2022b): each block of calls starts from one latent.

    Blocks lie where they would if no steps were `skipped`; one that is entered in its middle counts from there.
    """
    start, past = x, list[tuple[Linear, Level]]()
    orders = _orders(skipped + len(steps), order, steps[-1].target.sigma == 0)[skipped:]
    for i, step in enumerate(steps):
        calls = min(orders[i], i + 1)
        x, clean = trace.clean(x, step.level, step.timestep)
        if calls == 1:
            start, past = x, []
        past.append((clean, step.level))
        x = _singlestep(start, past, step.target, heun)
    return x


def _orders(n: int, order: int, ends_clean: bool) -> list[int]:
    """diffusers' list: blocks of 1, 2, ... `order` calls, and a lower order at the end."""
    blocks = list(range(1, order + 1))
    orders = (blocks * (n // order + 1))[:n]
    return [*orders[:-1], 1] if ends_clean else orders


def _singlestep(start: Linear, past: list[tuple[Linear, Level]], target: Level, heun: bool) -> Linear:
    """From the level of `past[0]`, where `start` is, to `target`."""
    (m0, level), others = past[0], past[1:]
    h = log_step(level, target)
    if h == 0:
        return start
    x = start * (target.sigma / level.sigma) - m0 * (target.alpha * math.expm1(-h))
    slopes = [((m - m0) / (r := log_step(level, at) / h), r) for m, at in others]
    if not slopes:
        return x
    rise = math.expm1(-h) / h + 1
    if len(slopes) == 1:
        return x + slopes[0][0] * (target.alpha * (rise if heun else -0.5 * math.expm1(-h)))
    (d1, r1), (d0, r0) = slopes
    if not heun:
        return x + d0 * (target.alpha * rise)
    first, second = (d1 * r0 - d0 * r1) / (r0 - r1), (d0 - d1) * (2 / (r0 - r1))
    return x + first * (target.alpha * rise) - second * (target.alpha * (rise / h - 0.5))


def deis(
    trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, order: int = 2, skipped: int = 0
) -> Linear:
    """DEIS with log-rho polynomials (tAB), Zhang and Chen (2022): the noise is extrapolated in log sigma."""
    past: list[tuple[Linear, float]] = []
    n = len(steps)
    few = skipped + n < FEW_STEPS
    for i, step in enumerate(steps):
        x, noise = trace.epsilon(x, step.level, step.timestep)
        past = [(noise, step.level.ratio), *past][:order]
        allowed = min(len(past), n - i) if n - i <= 2 and few else len(past)
        if step.target.sigma == 0:
            allowed = 1
        following = x / step.level.alpha
        rhos = [rho for _, rho in past[:allowed]]
        for k, (output, _) in enumerate(past[:allowed]):
            following = following + output * _log_integral(rhos, k, step.level.ratio, step.target.ratio)
        x = following * step.target.alpha
    return x


def _log_integral(rhos: list[float], k: int, start: float, end: float) -> float:
    """Over rho, from start to end, of the k-th Lagrange polynomial in log rho."""
    nodes = [math.log(rho) for i, rho in enumerate(rhos) if i != k]
    own = math.log(rhos[k])
    scale = math.prod(own - node for node in nodes)

    def primitive(rho: float) -> float:
        if not nodes:
            return rho
        at = math.log(rho)
        if len(nodes) == 1:
            return rho * (at - nodes[0] - 1)
        return rho * (at**2 - (sum(nodes) + 2) * at + nodes[0] * nodes[1] + sum(nodes) + 2)

    return (primitive(end) - primitive(start)) / scale
