"""Noise levels: the schedule a checkpoint was trained on, and the levels that a sampler visits on it.

A level is given by sigma = sqrt((1 - abar) / abar), the noise per unit of signal. What diffusers computes in float32
is computed so here too where it shows (1 - abar near 0), and in float64 elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from server.errors import ScheduleError

Floats: TypeAlias = npt.NDArray[np.float64]

SPACINGS = ("leading", "trailing", "linspace")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
KARRAS_RHO = 7.0
EULER_SPACING = "linspace"


@dataclass(frozen=True, eq=False)
class TrainedSchedule:
    """The schedule that a checkpoint was trained on, as diffusers' `scheduler_config.json` describes it.

    Attributes:
        sigmas: (num_train_timesteps,) ascending.
        spacing: how timesteps are spaced; None where the configuration is silent and each sampler has its own default.
        final_sigma: where DDIM ends: 0 with `set_alpha_to_one`, else the first trained level.
    """

    sigmas: Floats
    prediction_type: str
    spacing: str | None
    steps_offset: int
    final_sigma: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainedSchedule:
        """Read diffusers' configuration; keys that are absent have the defaults of its scheduler classes.

        Raises:
            ScheduleError: an unknown beta schedule, spacing or prediction type, or zero terminal signal-to-noise.
        """
        if config.get("rescale_betas_zero_snr"):
            raise ScheduleError(
                "rescale_betas_zero_snr is True in the scheduler configuration; only False is supported: "
                "take a checkpoint that was trained without zero terminal signal-to-noise"
            )
        spacing = _known(config, "timestep_spacing", SPACINGS, "leading") if config.get("timestep_spacing") else None
        prediction_type = _known(config, "prediction_type", PREDICTION_TYPES, "epsilon")
        abar = _alphas_cumprod(config)
        sigmas = np.sqrt((1 - abar) / abar)
        to_one = config.get("set_alpha_to_one", True)
        return cls(
            sigmas=sigmas,
            prediction_type=prediction_type,
            spacing=spacing,
            steps_offset=int(config.get("steps_offset", 0)),
            final_sigma=0.0 if to_one else float(sigmas[0]),
        )

    @property
    def length(self) -> int:
        """Number of trained timesteps."""
        return len(self.sigmas)

    def sigma_at(self, timesteps: Floats) -> Floats:
        """Sigmas at timesteps, interpolated linearly in sigma as diffusers does."""
        return np.interp(timesteps, np.arange(self.length), self.sigmas)

    def timestep_at(self, sigmas: Floats) -> Floats:
        """Timesteps at sigmas, interpolated linearly in log sigma; `_sigma_to_t` in diffusers and k-diffusion."""
        return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(self.sigmas), np.arange(self.length))


def _known(config: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> str:
    value = config.get(key) or default
    if value not in known:
        raise ScheduleError(f"{key} is {value!r} in the scheduler configuration; supported are {', '.join(known)}")
    return str(value)


def _alphas_cumprod(config: Mapping[str, Any]) -> Floats:
    """abar as torch computes it: betas in float32, their product accumulated in float64 and rounded to float32."""
    length = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = _known(config, "beta_schedule", ("linear", "scaled_linear"), "linear")
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float32)
    elif kind == "scaled_linear":
        betas = _linspace32(start**0.5, end**0.5, length) ** 2
    else:
        betas = _linspace32(start, end, length)
    product = np.cumprod((np.float32(1) - betas).astype(np.float64))
    return product.astype(np.float32).astype(np.float64)


def _linspace32(start: float, end: float, count: int) -> npt.NDArray[np.float32]:
    """torch.linspace in float32: counted from both ends towards the middle, each value rounded once (torch's FMA)."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    rising, falling = first + step * index, last - step * index[::-1]
    return np.where(index < count // 2, rising, falling).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Schedule:
    """The levels of one job.

    Attributes:
        timesteps: (n,) what the network is told, descending, possibly fractional.
        sigmas: (n,) the level of each step.
        next_sigmas: (n,) the level that each step aims at; the next sigma, but for DDIM's own rule.
    """

    timesteps: Floats
    sigmas: Floats
    next_sigmas: Floats


def _spaced(trained: TrainedSchedule, steps: int, spacing: str) -> Floats:
    """Table 2 of Lin et al. (2023), as diffusers' Euler and DDIM schedulers space their timesteps."""
    if spacing == "linspace":
        return np.linspace(0, trained.length - 1, steps)[::-1]
    if spacing == "leading":
        leading: Floats = np.arange(steps)[::-1] * float(trained.length // steps) + trained.steps_offset
        return leading
    trailing: Floats = np.round(np.arange(trained.length, 0, -trained.length / steps))[:steps] - 1
    return trailing


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int) -> Floats:
    """(steps,) descending; Karras et al. (2022), equation 5, rho = 7."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / KARRAS_RHO), sigma_max ** (1 / KARRAS_RHO)
    sigmas: Floats = (high + ramp * (low - high)) ** KARRAS_RHO
    return sigmas


def _towards(timesteps: Floats, sigmas: Floats, last: float) -> Schedule:
    return Schedule(timesteps, sigmas, np.append(sigmas[1:], last))


def euler_schedule(trained: TrainedSchedule, steps: int, kind: str) -> Schedule:
    """diffusers' EulerDiscreteScheduler: Karras sigmas span the *spaced* levels; the last target is 0."""
    timesteps = _spaced(trained, steps, trained.spacing or EULER_SPACING)
    sigmas = trained.sigma_at(timesteps)
    if kind == "karras":
        sigmas = karras_sigmas(sigmas[-1], sigmas[0], steps)
        timesteps = trained.timestep_at(sigmas)
    return _towards(timesteps, sigmas, 0.0)


def ddim_schedule(trained: TrainedSchedule, steps: int, kind: str) -> Schedule:
    """diffusers' DDIMScheduler: whole timesteps, each aiming at `length // steps` before it.

    diffusers has no Karras sigmas for DDIM; here they are Euler's, and the last target is DDIM's.
    """
    if kind == "karras":
        euler = euler_schedule(trained, steps, kind)
        return _towards(euler.timesteps, euler.sigmas, trained.final_sigma)
    timesteps = np.round(_spaced(trained, steps, trained.spacing or "leading"))
    target = timesteps.astype(int) - trained.length // steps
    targets = np.where(target >= 0, trained.sigmas[np.maximum(target, 0)], trained.final_sigma)
    return Schedule(timesteps, trained.sigmas[timesteps.astype(int)], targets)


def dpm_schedule(trained: TrainedSchedule, steps: int, kind: str) -> Schedule:
    """diffusers' DPMSolverMultistepScheduler: its own spacing of n + 1 points; Karras sigmas span all levels."""
    if kind == "karras":
        sigmas = karras_sigmas(trained.sigmas[0], trained.sigmas[-1], steps)
        return _towards(np.round(trained.timestep_at(sigmas)), sigmas, 0.0)
    spacing = trained.spacing or "linspace"
    if spacing == "linspace":
        timesteps = np.round(np.linspace(0, trained.length - 1, steps + 1))[::-1][:-1]
    elif spacing == "leading":
        stride = trained.length // (steps + 1)
        timesteps = (np.arange(steps + 1) * float(stride))[::-1][:-1] + trained.steps_offset
    else:
        timesteps = _spaced(trained, steps, spacing)
    return _towards(timesteps, trained.sigma_at(timesteps), 0.0)
