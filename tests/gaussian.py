"""Data whose best network and exact paths are known: an oracle of whole runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tests.fakes import trained

Latent: TypeAlias = npt.NDArray[np.float64]

SD = trained(steps_offset=1, set_alpha_to_one=True)


@dataclass(frozen=True)
class Normal:
    """Latents drawn from N(mean, deviation^2), for which the best network and the exact paths are known."""

    mean: float = 0.4
    deviation: float = 0.6

    def clean(self, x: Latent, sigma: float) -> Latent:
        """The mean of what x = clean + sigma * noise may have been."""
        seen: Latent = (self.deviation**2 * x + sigma**2 * self.mean) / (self.deviation**2 + sigma**2)
        return seen

    def output(self, seen: Latent, timestep: float, prediction_type: str = "epsilon") -> Latent:
        """Of the best network, from nothing but its inputs."""
        sigma = sigma_at(timestep)
        alpha = 1 / np.sqrt(1 + sigma**2)
        clean = self.clean(seen / alpha, sigma)
        noise = (seen / alpha - clean) / sigma
        v = alpha * noise - alpha * sigma * clean
        predicted: Latent = {"epsilon": noise, "v_prediction": v, "sample": clean}[prediction_type]
        return predicted

    def path(self, x: Latent, sigma: float, target: float) -> Latent:
        """Where the path through x = clean + sigma * noise is at another level."""
        reached: Latent = self.mean + (x - self.mean) * np.hypot(self.deviation, target) / np.hypot(
            self.deviation, sigma
        )
        return reached


DATA = Normal()


def sigma_at(timestep: float) -> float:
    """Between whole timesteps, where k-diffusion looks them up: linear in log sigma."""
    return float(np.exp(np.interp(timestep, np.arange(SD.length), np.log(SD.sigmas))))
