"""Normal noise of the CUDA random stream, made with numpy alone: AUTOMATIC1111's randomness source "NV".

Matches modules/rng_philox.py of AUTOMATIC1111's stable-diffusion-webui, which follows torch's CUDA generator: cuRAND's
Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the sine of Box and Muller.
"""

import math
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from server.noise import Float32Array, check_seed, check_shape

# 32-bit words, held in 64 bits so that a product of two is exact.
Words: TypeAlias = npt.NDArray[np.uint64]

_ROUNDS: Final = 10
_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_WORD_LIMIT: Final = 2**32
_WORD_BITS: Final = np.uint64(32)
_WORD_MASK: Final = np.uint64(_WORD_LIMIT - 1)
_UNIFORM_STEP: Final = 2.0**-32
# Rounded to float32, as cuRAND's constant is.
_ANGLE_STEP: Final = float(np.float32(2 * math.pi / _WORD_LIMIT))


class PhiloxGenerator:
    """torch's CUDA random generator for standard normal draws, as A1111 imitates it on the CPU.

    `PhiloxGenerator(seed)` stands for `torch.Generator("cuda").manual_seed(seed)`. Each call continues the stream. One
    object belongs to one thread at a time.

    A1111's values are matched, computed in float64 and rounded once; those of a GPU, computed in float32 with a fast
    sine, differ in their last digits. Like A1111's, a draw with more values than the GPU has resident threads (40,960
    on a T4; a latent of 4 x 64 x 64 has 16,384) differs from the GPU's altogether beyond that many.

    Args:
        seed: 0 <= seed < 2**64. All 64 bits choose the stream, unlike those of `TorchGenerator`.

    Raises:
        ValueError: the seed is outside that range.
    """

    def __init__(self, seed: int) -> None:
        check_seed(seed)
        self._key = (seed % _WORD_LIMIT, seed // _WORD_LIMIT)
        self._draws = 0

    def normal(self, shape: tuple[int, ...]) -> Float32Array:
        """Draw what A1111's generator draws next for that shape: mean 0, standard deviation 1, no unit.

        Value i of draw d depends on the seed, d and i alone: a draw of any size, even of none, counts as one, and a
        short draw is the beginning of a long one.

        Args:
            shape: sizes of the result, each >= 0. () gives one value.

        Returns:
            A new C-contiguous float32 array of that shape.

        Raises:
            ValueError: a size is negative.

        Source: `Generator.randn` in A1111's modules/rng_philox.py.
        """
        check_shape(shape)
        zero = np.zeros(1, dtype=np.uint64)
        draw = np.full(1, self._draws, dtype=np.uint64)
        index = np.arange(math.prod(shape), dtype=np.uint64)
        self._draws += 1
        first, second, _, _ = philox4x32((draw, zero, index, zero), self._key)
        return _box_muller(first, second).reshape(shape)


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: four random words for each counter.

    Args:
        counter: four arrays of words, lowest first, of shapes that broadcast: a word that all counters share may be an
            array of one.
        key: two words, lowest first.

    Source: section 3.3 of Salmon et al.; the same words as Random123's `philox4x32`.
    """
    x0, x1, x2, x3 = counter
    for turn in range(_ROUNDS):
        key0, key1 = (np.uint64((k + turn * step) % _WORD_LIMIT) for k, step in zip(key, _KEY_STEPS, strict=True))
        even, odd = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x2 = (odd >> _WORD_BITS) ^ (x1 ^ key0), (even >> _WORD_BITS) ^ (x3 ^ key1)
        x1, x3 = odd & _WORD_MASK, even & _WORD_MASK
    return x0, x1, x2, x3


def _box_muller(radius_words: Words, angle_words: Words) -> Float32Array:
    """The sine half of Box and Muller's pair, as in cuRAND's `_curand_box_muller`; the cosine half is not used."""
    uniform = radius_words * _UNIFORM_STEP + _UNIFORM_STEP / 2
    angle = angle_words * _ANGLE_STEP + _ANGLE_STEP / 2
    values: Float32Array = (np.sqrt(-2.0 * np.log(uniform)) * np.sin(angle)).astype(np.float32)
    return values
