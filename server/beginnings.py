"""How the passes of an image begin: with nothing but noise, or with a picture, a mask, a depth map, a small picture.

A beginning is a function of a work that has its table and its generator, and gives the work with its first latent and
what else its UNet takes. It is called once for each image, and draws in diffusers' order (see `server.latents`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from server.blend import Blend
from server.latents import draw_latent, noised
from server.low_resolution import LowResolutionNoise
from server.work import Work

Array: TypeAlias = npt.NDArray[np.float32]
Begin: TypeAlias = Callable[[Work], Work]


def from_noise(work: Work) -> Work:
    """The loop draws the first latent."""
    return work


def from_latent(work: Work, clean: Array) -> Work:
    """Noise on a clean latent, (c, h, w): as much as there is at the level where the table begins."""
    noise = work.noise.normal(clean.shape)
    return replace(work, start=noised(clean, noise, *map(float, work.table.levels[0])))


@dataclass(frozen=True, slots=True)
class FromPicture:
    """Image-to-image.

    Attributes:
        moments: (2c, h, w) of the picture.
        scaling_factor: of the VAE.
    """

    moments: Array
    scaling_factor: float

    def __call__(self, work: Work) -> Work:
        return from_latent(work, draw_latent(self.moments, work.noise, self.scaling_factor))


@dataclass(frozen=True, slots=True)
class WithDepth:
    """Depth-to-image.

    Attributes:
        begin: with a picture, or with noise.
        depth: (1, h, w) in [-1, 1].
    """

    begin: Begin
    depth: Array

    def __call__(self, work: Work) -> Work:
        return replace(self.begin(work), extra=self.depth)


@dataclass(frozen=True, slots=True)
class Upscaling:
    """The x4 upscaler, whose latent begins as noise.

    Attributes:
        picture: (3, h, w) in [-1, 1], of the latent's height and width.
        level: of the noise on it.
        noising: the checkpoint's own.
    """

    picture: Array
    level: int
    noising: LowResolutionNoise

    def __call__(self, work: Work) -> Work:
        return replace(work, extra=self.noising.apply(self.picture, self.level, work.noise), label=self.level)


@dataclass(frozen=True, slots=True)
class Inpainting:
    """A mask, for a UNet that takes one or for one that does not.

    Attributes:
        mask: (1, h, w), 1 where the latent is repainted.
        strength: 1 begins with nothing but noise.
        content: what is under the mask at first; see `server.fields.MASKED_CONTENTS`.
        moments: (2c, h, w) of the picture; None where strength 1 on a UNet that takes a mask does without.
        masked: (2c, h, w) of the picture with its masked part grey; None for a UNet that takes no mask.
        scaling_factor: of the VAE.
    """

    mask: Array
    strength: float
    content: str
    moments: Array | None
    masked: Array | None
    scaling_factor: float

    def __call__(self, work: Work) -> Work:
        needed = self.masked is None or self.strength < 1
        clean = self._latent(work, self.moments) if needed else None
        noise = work.noise.normal(self._shape)
        first = self._first(work, clean, noise)
        if self.masked is None:
            # diffusers encodes the masked picture for every UNet: the draws of the steps come after this one.
            work.noise.normal(self._shape)
            assert clean is not None
            return replace(work, start=first, blend=Blend(self.mask[0], clean, noise))
        return replace(work, start=first, extra=np.concatenate([self.mask, self._latent(work, self.masked)]))

    @property
    def draws(self) -> int:
        """Draws that it makes."""
        return 2 if self.masked is not None and self.strength >= 1 else 3

    @property
    def _shape(self) -> tuple[int, ...]:
        moments = self.moments if self.masked is None else self.masked
        assert moments is not None
        return len(moments) // 2, *moments.shape[1:]

    def _latent(self, work: Work, moments: Array | None) -> Array:
        assert moments is not None
        return draw_latent(moments, work.noise, self.scaling_factor)

    def _first(self, work: Work, clean: Array | None, noise: Array) -> Array:
        if self.strength >= 1 or clean is None:
            pure: Array = noise * np.float32(work.table.initial_scale)
            return pure
        if self.content in ("latent_noise", "latent_nothing"):
            under = noise if self.content == "latent_noise" else np.zeros_like(clean)
            clean = np.where(self.mask > 0, under, clean)
        return noised(clean, noise, *map(float, work.table.levels[0]))
