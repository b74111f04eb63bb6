"""Predictor-corrector methods on x = alpha * clean + sigma * noise: UniPC and SA-Solver.

Each call first corrects the latent that it was made at; the next prediction goes on from the corrected one. A job keeps
no corrected latents: where a prediction set out is read back from where it arrived.
"""

from __future__ import annotations

import math

from server.exponential import log_step
from server.levels import Step
from server.schedule import TrainedSchedule
from server.table import Level, Linear, Trace

# Timesteps between which SA-Solver is stochastic, as diffusers has it by default.
STOCHASTIC = (200, 800)


def unipc(
    trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule, *, order: int = 2, bh1: bool = False
) -> Linear:
    """UniPC, algorithms 1 and 2 of Zhao et al. (2023), predicting the clean latent, with B(h) = h or e^h - 1."""
    past: list[tuple[Linear, Level]] = []
    predicted, expected, used = x, Linear({}), 0
    for i, step in enumerate(steps):
        seen, clean = trace.clean(predicted, step.level, step.timestep)
        corrected = seen
        if i > 0:
            gain = _unipc_sum(past, step.level, used, bh1, clean)
            corrected = Linear.weighted([(seen, 1.0), (expected, -1.0), (gain, 1.0)])
        past = [(clean, step.level), *past][:order]
        used = min(order, len(steps) - i, i + 1)
        expected = _unipc_sum(past, step.target, used, bh1, None)
        predicted = Linear.weighted([(corrected, step.target.sigma / step.level.sigma), (expected, 1.0)])
    return predicted


def _unipc_sum(
    past: list[tuple[Linear, Level]], target: Level, order: int, bh1: bool, arrived: Linear | None
) -> Linear:
    """What the outputs add on the way to `target`; with the output there (`arrived`), the corrector's sum."""
    m0, level = past[0]
    h = log_step(level, target)
    rise = math.expm1(-h)
    if order == 1 and arrived is None:
        return m0 * (-target.alpha * rise)
    scale = -h if bh1 else rise
    points = [-log_step(at, level) / h for _, at in past[1:order]]
    outputs = [m for m, _ in past[1:order]]
    # Slopes from m0: (m - m0) / r at each point; where the step arrived, r = 1.
    if arrived is not None:
        points, outputs = [*points, 1.0], [*outputs, arrived]
    weights = _unipc_weights(points, h, scale)
    factors = [-target.alpha * scale * weight / point for weight, point in zip(weights, points, strict=True)]
    own = -target.alpha * rise - sum(factors)
    return Linear.weighted([(m0, own), *zip(outputs, factors, strict=True)])


def _unipc_weights(points: list[float], h: float, scale: float) -> list[float]:
    """Equation 10 of the paper; with one point it is 1/2 by definition, as in the reference implementation."""
    if len(points) == 1:
        return [0.5]
    phi = math.expm1(-h) / -h - 1
    factorial, right = 1.0, []
    for k in range(1, len(points) + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    return _solved([[point**k for point in points] for k in range(len(points))], right)


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve two or three equations, where numpy's call costs more than its answer."""
    if len(right) == 2:
        (a, b), (c, d) = matrix
        determinant = a * d - b * c
        return [(right[0] * d - b * right[1]) / determinant, (a * right[1] - c * right[0]) / determinant]
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for k, pivot in enumerate(rows):
        pivot[:] = [value / pivot[k] for value in pivot]
        for row in rows[:k] + rows[k + 1 :]:
            row[:] = [value - row[k] * other for value, other in zip(row, pivot, strict=True)]
    return [row[-1] for row in rows]


def sa(trace: Trace, x: Linear, steps: list[Step], trained: TrainedSchedule) -> Linear:
    """Stochastic Adams, algorithm 1 of Xue et al. (2023), predictor and corrector of order two, as in diffusers.

    It predicts the clean latent; noise is drawn after every call, also where tau = 0 leaves none of it. A known
    region has the level that it walks on; that of diffusers 0.42.1 has its timestep's, which sigma schedules round.
    """
    past: list[tuple[Linear, Level]] = []
    predicted, expected, last_tau = x, Linear({}), 0.0
    for i, step in enumerate(steps):
        tau = 1.0 if STOCHASTIC[0] <= step.timestep <= STOCHASTIC[1] else 0.0
        seen, clean = trace.clean(predicted, step.level, step.timestep)
        corrected = seen
        if i > 0:
            corrected = seen - expected + _adams_sum([(clean, step.level), past[0]], past[0][1], step.level, last_tau)
        past = [(clean, step.level), *past][: min(2, len(steps) - i)]
        h, last_tau = log_step(step.level, step.target), tau
        if step.target.sigma == 0:
            return clean
        expected = _adams_sum(past, step.level, step.target, tau)
        kept = math.exp(-(tau**2) * h) * step.target.sigma / step.level.sigma
        fresh = step.target.sigma * math.sqrt(-math.expm1(-2 * tau**2 * h))
        predicted = corrected * kept + expected + trace.noise() * fresh
    return predicted


def _adams_sum(nodes: list[tuple[Linear, Level]], level: Level, target: Level, tau: float) -> Linear:
    """The integral of the line through the outputs at `nodes`, from `level` to `target`, weighted by e^(c lambda)."""
    c, h = 1 + tau**2, log_step(level, target)
    whole = -math.expm1(-c * h) / c
    first = (h * math.exp(-c * h) - whole) / c
    if len(nodes) == 1:
        return nodes[0][0] * (c * target.alpha * whole)
    (m0, at0), (m1, at1) = nodes
    u0, u1 = (log_step(target, at) for at in (at0, at1))
    weight = (first - u1 * whole) / (u0 - u1)
    # diffusers adds this to make the error of the second order that of the deterministic method.
    bend = (c * h + math.expm1(-c * h)) / c**2
    weight += (h / 2 - bend / h) if u0 == 0 else (h**2 / 2 - bend) / (u0 - u1)
    return m0 * (c * target.alpha * weight) + m1 * (c * target.alpha * (whole - weight))
