"""The noise schedule that a checkpoint was trained on, as diffusers' `scheduler_config.json` describes it.

What diffusers computes in float32 is computed so here too where it shows (1 - abar near 0), and in float64 elsewhere.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from server.errors import ScheduleError
from server.table import Level

Floats: TypeAlias = npt.NDArray[np.float64]
Floats32: TypeAlias = npt.NDArray[np.float32]

SPACINGS = ("leading", "trailing", "linspace")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
FINAL_SIGMAS = ("zero", "sigma_min")
# diffusers' stand-in for a signal of zero where noise per unit of signal must be finite.
LEAST_SIGNAL = 2.0**-24
# Extras of diffusers' schedulers that are not linear, or that shift the levels of flow models.
UNSUPPORTED = ("thresholding", "clip_sample", "use_flow_sigmas", "use_dynamic_shifting")


@dataclass(frozen=True, eq=False)
class TrainedSchedule:
    """The schedule that a checkpoint was trained on.

    Attributes:
        abar: (num_train_timesteps,) the part of the variance that is signal, descending; the last is 0 where the
            schedule was rescaled to zero terminal signal-to-noise.
        sigmas: (num_train_timesteps,) noise per unit of signal, ascending, finite.
        spacing: how timesteps are spaced; None where the configuration is silent and each sampler has its own default.
        set_alpha_to_one: whether DDIM and its kin end without noise, or at the first trained level; None where the
            configuration is silent.
        kind: the noise levels that the configuration asks for (`use_karras_sigmas` and its like).
        final_sigma: `zero`, `sigma_min`, or None where the configuration is silent.
    """

    abar: Floats
    sigmas: Floats
    prediction_type: str
    spacing: str | None
    steps_offset: int
    set_alpha_to_one: bool | None
    kind: str
    final_sigma: str | None
    original_inference_steps: int
    timestep_scaling: float
    whole_karras_timesteps: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainedSchedule:
        """Read diffusers' configuration; keys that are absent have the defaults of its scheduler classes.

        Raises:
            ScheduleError: an unknown beta schedule, spacing or prediction type, or an extra that no table can hold.
        """
        for key in UNSUPPORTED:
            if config.get(key):
                raise ScheduleError(f"{key} is True in the scheduler configuration; only False is supported")
        prediction_type = _known(config, "prediction_type", PREDICTION_TYPES, "epsilon")
        abar = _alphas_cumprod(config)
        if abar[-1] == 0 and prediction_type == "epsilon":
            raise ScheduleError(
                "rescale_betas_zero_snr is True but prediction_type is epsilon: where there is no signal, the noise "
                "tells nothing of the picture; such checkpoints are trained with v_prediction: set that"
            )
        signal = np.where(abar > 0, abar, LEAST_SIGNAL)
        return cls(
            abar=abar,
            sigmas=np.sqrt((1 - signal) / signal),
            prediction_type=prediction_type,
            spacing=_known(config, "timestep_spacing", SPACINGS, "") or None,
            steps_offset=int(config.get("steps_offset", 0)),
            set_alpha_to_one=config.get("set_alpha_to_one"),
            kind=_kind(config),
            final_sigma=_known(config, "final_sigmas_type", FINAL_SIGMAS, "") or None,
            original_inference_steps=int(config.get("original_inference_steps") or 50),
            timestep_scaling=float(config.get("timestep_scaling", 10.0)),
            whole_karras_timesteps=config.get("beta_schedule") != "squaredcos_cap_v2",
        )

    @property
    def length(self) -> int:
        """Number of trained timesteps."""
        return len(self.sigmas)

    def level(self, timestep: int, to_one: bool = True) -> Level:
        """The variance-preserving level of a whole timestep; below 0 lies the final level.

        `to_one` is for where `set_alpha_to_one` is not said.
        """
        if timestep >= 0:
            return Level.at(float(self.abar[timestep]))
        to_one = to_one if self.set_alpha_to_one is None else self.set_alpha_to_one
        return Level(1.0, 0.0) if to_one else Level.at(float(self.abar[0]))

    def sigma_at(self, timesteps: Floats) -> Floats:
        """Sigmas at timesteps, interpolated linearly in sigma as diffusers does."""
        return np.interp(timesteps, np.arange(self.length), self.sigmas)

    def timestep_at(self, sigmas: Floats) -> Floats:
        """Timesteps at sigmas, interpolated linearly in log sigma; `_sigma_to_t` in diffusers and k-diffusion."""
        return np.interp(np.log(np.maximum(sigmas, 1e-10)), self.log_sigmas, np.arange(self.length))

    def timestep_of(self, sigma: float) -> float:
        """The timestep at one sigma, as `timestep_at`."""
        logs = self._log_list
        at = math.log(max(sigma, 1e-10))
        i = bisect_right(logs, at)
        if i in (0, len(logs)):
            return float(max(i - 1, 0))
        return i - 1 + (at - logs[i - 1]) / (logs[i] - logs[i - 1])

    @cached_property
    def log_sigmas(self) -> Floats:
        return np.log(self.sigmas)

    @cached_property
    def _log_list(self) -> list[float]:
        values: list[float] = self.log_sigmas.tolist()
        return values


def _known(config: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> str:
    value = config.get(key) or default
    if value != default and value not in known:
        raise ScheduleError(f"{key} is {value!r} in the scheduler configuration; supported are {', '.join(known)}")
    return str(value)


def _kind(config: Mapping[str, Any]) -> str:
    return next((kind for kind in ("karras", "exponential", "beta") if config.get(f"use_{kind}_sigmas")), "normal")


def _alphas_cumprod(config: Mapping[str, Any]) -> Floats:
    betas = _betas(config)
    if config.get("rescale_betas_zero_snr"):
        betas = _rescaled(betas)
    return _cumprod(np.float32(1) - betas).astype(np.float64)


def _betas(config: Mapping[str, Any]) -> Floats32:
    length = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float32)
    kind = _known(config, "beta_schedule", BETA_SCHEDULES, "linear")
    if kind == "scaled_linear":
        squared: Floats32 = _linspace32(start**0.5, end**0.5, length) ** 2
        return squared
    return _linspace32(start, end, length) if kind == "linear" else _cosine_betas(length)


def _cosine_betas(length: int) -> Floats32:
    """Nichol and Dhariwal (2021), equation 17."""
    signal = [math.cos((i / length + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(length + 1)]
    return np.array([min(1 - signal[i + 1] / signal[i], 0.999) for i in range(length)], np.float32)


def _rescaled(betas: Floats32) -> Floats32:
    """Lin et al. (2023), algorithm 1: no signal at the last timestep. In float32, step by step, as diffusers."""
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    signal = ((root - last) * (first / (first - last))) ** 2
    alphas = np.concatenate([signal[:1], signal[1:] / signal[:-1]])
    rescaled: Floats32 = np.float32(1) - alphas
    return rescaled


def _cumprod(alphas: Floats32) -> Floats32:
    """torch.cumprod in float32: accumulated in float64, each product rounded once."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _linspace32(start: float, end: float, count: int) -> Floats32:
    """torch.linspace in float32: counted from both ends towards the middle, each value rounded once (torch's FMA)."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    rising, falling = first + step * index, last - step * index[::-1]
    return np.where(index < count // 2, rising, falling).astype(np.float32)
