"""Variation seeds of AUTOMATIC1111: a first noise that is turned part of the way towards the noise of another seed.

Matches `slerp` and `ImageRNG` in modules/rng.py of AUTOMATIC1111's stable-diffusion-webui, to float32's rounding. Its
seed resize, which places noise of another size, is not made.
"""

from typing import Final

import numpy as np

from server.noise import Float32Array, Float64Array, Noise

_SAME_COSINE: Final = 0.9995
_HEIGHT_AXIS: Final = -2


class VariationNoise:
    """The noise of one image with a variation seed, in the order in which A1111's `ImageRNG` draws it.

    The first draw is `slerp(strength, base's first, sub's first)`; every later draw is the next one of `later`. `sub`
    is drawn from once, and at strength 0 never. One object belongs to one thread at a time.

    Where a first latent takes several draws, because a picture is encoded for it, all of them are turned, so that
    strength 1 gives all that `sub` would have given. A1111 encodes with a generator of another kind.

    In A1111 image i of a batch has base seed s and sub seed v + i; at strength 0 it has base seed s + i.

    Args:
        base: of the image's seed.
        sub: of the variation seed.
        strength: 0 <= strength <= 1.
        later: for every draw after the first ones; `base` goes on by default. A1111's eta noise seed delta, where it is
            not 0, is a new generator of base's seed + delta, which begins its stream here.
        firsts: draws that the first latent takes.

    Raises:
        ValueError: the strength is outside that range.
    """

    def __init__(
        self, base: Noise, sub: Noise, *, strength: float, later: Noise | None = None, firsts: int = 1
    ) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(
                f"variation strength {strength} is out of range: give a number from 0 (the seed's own noise) "
                "to 1 (the variation seed's)"
            )
        self._base = base
        self._sub = sub
        self._strength = strength
        self._later = base if later is None else later
        self._firsts = firsts

    def normal(self, shape: tuple[int, ...]) -> Float32Array:
        """Draw what A1111 draws next for that shape.

        Args:
            shape: sizes of the result. At a strength above 0 the first is (..., height, width), height >= 2.

        Returns:
            A new float32 array of that shape.

        Raises:
            ValueError: `base`, `sub`, `later` or `slerp` refuses the shape.

        Source: `ImageRNG.first` and `ImageRNG.next` in A1111's modules/rng.py.
        """
        if not self._firsts:
            return self._later.normal(shape)
        noise = self._base.normal(shape)
        if self._strength:
            noise = slerp(self._strength, noise, self._sub.normal(shape))
        self._firsts -= 1
        return noise


def slerp(strength: float, low: Float32Array, high: Float32Array) -> Float32Array:
    """Turn `low` towards `high`: strength 0 gives `low`, 1 gives `high`, in between the angle grows evenly.

    It is each column of the noise that is turned, by an angle of its own, not the noise as a whole: A1111 gives its
    `slerp` one image, (channels, height, width), and takes norms along axis 1. Where the cosines of the angles have a
    mean above 0.9995, as when both seeds are the same, A1111 mixes linearly with the weights swapped; so does this.

    Args:
        strength: 0 to 1.
        low: (..., height, width), height >= 2, not empty. No column is zero throughout.
        high: like `low`. No column is parallel to that of `low`, unless all are: as in A1111 it would become NaN.

    Returns:
        A new float32 array of the same shape.

    Raises:
        ValueError: the shapes differ, or are not as said.

    Source: `slerp` in A1111's modules/rng.py; K. Shoemake, "Animating rotation with quaternion curves", 1985.
    """
    if low.shape != high.shape or low.ndim < 2 or low.shape[_HEIGHT_AXIS] < 2 or low.size == 0:
        raise ValueError(
            f"noise of shapes {low.shape} and {high.shape} cannot be turned into each other: "
            "give both the same shape (..., height, width) with a height of 2 or more, e.g. (4, 64, 64)"
        )
    start, end = low.astype(np.float64), high.astype(np.float64)
    cosine = _products(start, end) / np.sqrt(_products(start, start) * _products(end, end))
    if cosine.mean() > _SAME_COSINE:
        mixed = strength * start + (1 - strength) * end
    else:
        angle = np.arccos(cosine)
        mixed = (np.sin((1 - strength) * angle) * start + np.sin(strength * angle) * end) / np.sin(angle)
    noise: Float32Array = mixed.astype(np.float32)
    return noise


def _products(a: Float64Array, b: Float64Array) -> Float64Array:
    """(..., 1, width): the inner product of each column with its like."""
    products: Float64Array = (a * b).sum(axis=_HEIGHT_AXIS, keepdims=True)
    return products
