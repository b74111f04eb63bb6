"""The low-resolution picture that the x4 upscaler enlarges, noised as it was trained: by a schedule of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from server.errors import InvalidRequest
from server.noise import Float32Array, Noise
from server.schedule import TrainedSchedule

DEFAULT_LEVEL: Final = 20
# diffusers' and Stability's: the upscaler was not trained on noisier pictures.
HIGHEST_LEVEL: Final = 350


class LowResolutionNoise:
    """Noise augmentation of the x4 upscaler's picture.

    Args:
        config: the checkpoint's `low_res_scheduler/scheduler_config.json`; not the configuration of the main schedule.
        highest: the highest level that a request may ask for.

    Raises:
        ScheduleError: the configuration is not supported.
    """

    def __init__(self, config: Mapping[str, Any], highest: int = HIGHEST_LEVEL) -> None:
        # `clip_sample` tells how to sample on this schedule, which nobody does: it only adds noise.
        trained = TrainedSchedule.from_config({**config, "clip_sample": False})
        self._abar = trained.abar
        self._highest = min(highest, trained.length - 1)

    def check(self, level: int) -> None:
        """Raises InvalidRequest for a level that the upscaler was not trained on."""
        if not 0 <= level <= self._highest:
            raise InvalidRequest(
                f"noise_level is {level}; it must be a whole number from 0 (keep all that the picture shows) to "
                f"{self._highest}: send {DEFAULT_LEVEL} for a clean picture, more for one with artefacts"
            )

    def mix(self, level: int) -> tuple[float, float]:
        """(signal, noise): the parts of the picture and of the noise at a level; their squares sum to 1.

        Raises:
            InvalidRequest: as `check`.
        """
        self.check(level)
        abar = float(self._abar[level])
        return math.sqrt(abar), math.sqrt(1 - abar)

    def apply(self, picture: Float32Array, level: int, noise: Noise) -> Float32Array:
        """What follows the latent in the upscaler's input, the same for all rows and calls of an image.

        Draws (3, h, w) once, before the latent's noise, which is diffusers' order.

        Args:
            picture: (3, h, w) in [-1, 1]; the latent of its enlargement has the same height and width.
            level: of the noise; it is also the class label of the image's rows.
            noise: the image's generator, not yet drawn from.

        Returns:
            A new float32 array (3, h, w).

        Raises:
            InvalidRequest: as `check`.

        Source: `DDPMScheduler.add_noise` and `StableDiffusionUpscalePipeline` of diffusers.
        """
        signal, amount = self.mix(level)
        drawn = noise.normal(picture.shape)
        noisy: Float32Array = np.float32(signal) * picture + np.float32(amount) * drawn
        return noisy
