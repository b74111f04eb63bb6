"""The samplers, each a short function in its paper's notation, and the tables they compile to.

`sigma` is noise per unit of signal. Euler methods move x = clean + sigma * noise (variance exploding), the others
x = alpha * clean + sigma' * noise with alpha^2 + sigma'^2 = 1 (variance preserving), as their references do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from server.schedule import EULER_SPACING, Schedule, TrainedSchedule, ddim_schedule, dpm_schedule, euler_schedule
from server.table import Level, Linear, Table, Trace, compile_table


def euler(trace: Trace, x: Linear, schedule: Schedule) -> Linear:
    """Algorithm 2 (Euler steps, no churn) of Karras et al. (2022)."""
    for t, sigma, sigma_next in _steps(schedule):
        x, clean = trace.clean(x, Level(1.0, sigma), t)
        d = (x - clean) / sigma
        x = x + d * (sigma_next - sigma)
    return x


def euler_ancestral(trace: Trace, x: Linear, schedule: Schedule) -> Linear:
    """Ancestral sampling with Euler steps, as in k-diffusion; eta = 1."""
    for t, sigma, sigma_next in _steps(schedule):
        x, clean = trace.clean(x, Level(1.0, sigma), t)
        up = np.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        down = np.sqrt(sigma_next**2 - up**2)
        d = (x - clean) / sigma
        x = x + d * (down - sigma) + trace.noise() * up
    return x


def ddim(trace: Trace, x: Linear, schedule: Schedule) -> Linear:
    """Equation 12 of Song et al. (2020) with eta = 0."""
    for t, ratio, ratio_next in _steps(schedule):
        level, following = Level.preserving(ratio), Level.preserving(ratio_next)
        x, clean = trace.clean(x, level, t)
        noise = (x - clean * level.alpha) / level.sigma
        x = clean * following.alpha + noise * following.sigma
    return x


def dpmpp_2m(trace: Trace, x: Linear, schedule: Schedule) -> Linear:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. (2022b), midpoint form; first order at both ends as in diffusers."""
    previous: tuple[Linear, float] | None = None
    n = len(schedule.sigmas)
    for i, (t, ratio, ratio_next) in enumerate(_steps(schedule)):
        level, following = Level.preserving(ratio), Level.preserving(ratio_next)
        x, clean = trace.clean(x, level, t)
        decay = ratio_next / ratio  # exp(-h), h the step in log signal-to-noise
        data = clean
        if previous is not None and i < n - 1:
            last_clean, last_ratio = previous
            r = np.log(last_ratio / ratio) / np.log(ratio / ratio_next)
            data = clean + (clean - last_clean) / (2 * r)
        x = x * (following.sigma / level.sigma) + data * (following.alpha * (1 - decay))
        previous = clean, ratio
    return x


def _steps(schedule: Schedule) -> list[tuple[float, float, float]]:
    return list(zip(schedule.timesteps.tolist(), schedule.sigmas.tolist(), schedule.next_sigmas.tolist(), strict=True))


def _exploding_scale(trained: TrainedSchedule, schedule: Schedule) -> float:
    """diffusers' `init_noise_sigma` of the Euler family."""
    sigma = float(schedule.sigmas.max())
    spacing = trained.spacing or EULER_SPACING
    return sigma if spacing in ("linspace", "trailing") else float(np.sqrt(sigma**2 + 1))


def _unit_scale(trained: TrainedSchedule, schedule: Schedule) -> float:
    return 1.0


@dataclass(frozen=True, slots=True)
class Method:
    """A sampler with the schedule it walks on and the scale of its first latent."""

    sample: Callable[[Trace, Linear, Schedule], Linear]
    schedule: Callable[[TrainedSchedule, int, str], Schedule]
    initial_scale: Callable[[TrainedSchedule, Schedule], float]
    summary: str


METHODS: dict[str, Method] = {
    "euler": Method(euler, euler_schedule, _exploding_scale, "first order, deterministic"),
    "euler_ancestral": Method(euler_ancestral, euler_schedule, _exploding_scale, "first order, fresh noise per step"),
    "ddim": Method(ddim, ddim_schedule, _unit_scale, "first order, deterministic"),
    "dpmpp_2m": Method(dpmpp_2m, dpm_schedule, _unit_scale, "second order, deterministic"),
}


def sampler_table(name: str, kind: str, steps: int, trained: TrainedSchedule) -> Table:
    """The table of a sampler.

    Args:
        name: a key of `METHODS`.
        kind: `normal` or `karras` noise levels.
        steps: denoising steps, 1 to the number of trained timesteps less one.
    """
    method = METHODS[name]
    schedule = method.schedule(trained, steps, kind)
    scale = method.initial_scale(trained, schedule)
    return compile_table(lambda trace, x: method.sample(trace, x, schedule), trained.prediction_type, scale)
