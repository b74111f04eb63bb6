"""Normal noise equal, bit for bit, to `torch.randn` with a seeded CPU generator, made with numpy alone.

Matches torch 2.13 on x86 with AVX2: ATen's MT19937RNGEngine.h, DistributionsHelper.h (under 16 values) and
DistributionTemplates.h with avx_mathfun.h (16 values or more: Cephes logf, sinf, cosf as GCC contracts them to FMA).
"""

import math
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
WordArray: TypeAlias = npt.NDArray[np.uint32]

_SEED_LIMIT: Final = 2**64
_WORD_LIMIT: Final = 2**32
_UNIFORM_MASK: Final = np.uint32(2**24 - 1)
_UNIFORM_STEP: Final = np.float32(2**-24)
_DOUBLE_BITS: Final = 53
_GROUP: Final = 16
# Larger draws go through the polynomials in slices whose float64 scratch arrays (64 KiB each) stay in cache.
_SLICE_GROUPS: Final = 1024


def _f32(*values: float) -> tuple[float, ...]:
    return tuple(float(np.float32(value)) for value in values)


(_SQRT_HALF, _TWO_PI, _FOUR_OVER_PI) = _f32(math.sqrt(0.5), 2 * math.pi, 4 / math.pi)
# Cephes logf: minimax polynomial of (log(1+x) - x + x*x/2) / x**3, highest power first, and ln 2 in two parts.
_LOG: Final = _f32(
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
(_LN2_HIGH, _LN2_LOW) = _f32(0.693359375, -2.12194440e-4)
# Cephes sinf and cosf: pi/4 in three parts, then the polynomials in x*x, highest power first.
_PI_4_PARTS: Final = _f32(0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)
_SIN: Final = _f32(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS: Final = _f32(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


class Noise(Protocol):
    """Where a job's standard normal noise comes from, draw after draw."""

    def normal(self, shape: tuple[int, ...]) -> Float32Array: ...


def check_seed(seed: int) -> None:
    """Raises ValueError outside 0 <= seed < 2**64."""
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(
            f"seed {seed} is out of range: it must be an integer from 0 to 2**64 - 1 (18446744073709551615); "
            "reduce a larger or negative number with `seed % 2**64`"
        )


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises ValueError for a negative size."""
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape} has a negative size: give sizes of 0 or more, e.g. (1, 4, 64, 64)")


class TorchGenerator:
    """torch's CPU random generator for standard normal draws, without torch.

    `TorchGenerator(seed)` stands for `torch.Generator("cpu").manual_seed(seed)`. Each call continues the stream.
    One object belongs to one thread at a time; numpy's global random state is never touched.

    Args:
        seed: 0 <= seed < 2**64. As in torch, only the low 32 bits choose the stream: 2**32 draws what 0 draws.

    Raises:
        ValueError: the seed is outside that range.
    """

    def __init__(self, seed: int) -> None:
        check_seed(seed)
        # numpy promises that RandomState's stream never changes (NEP 19); an int seed is MT19937's init_genrand.
        self._engine = np.random.RandomState(seed % _WORD_LIMIT)
        self._spare: float | None = None

    def normal(self, shape: tuple[int, ...]) -> Float32Array:
        """Draw what `torch.randn(shape, generator=g)` draws next: mean 0, standard deviation 1, no unit.

        Args:
            shape: sizes of the result, each >= 0. () gives one value; a size of 0 draws nothing.

        Returns:
            A new C-contiguous float32 array of that shape.

        Raises:
            ValueError: a size is negative.

        Source: `normal_kernel` in torch's ATen/native/cpu/DistributionTemplates.h.
        """
        check_shape(shape)
        count = math.prod(shape)
        if count < _GROUP:
            values = np.array([self._next_double() for _ in range(count)], dtype=np.float64).astype(np.float32)
        else:
            values = self._fill(count)
        return values.reshape(shape)

    def _words(self, count: int) -> WordArray:
        return self._engine.randint(0, _WORD_LIMIT, size=count, dtype=np.uint32)

    def _fill(self, count: int) -> Float32Array:
        whole, rest = divmod(count, _GROUP)
        values = np.empty(count, dtype=np.float32)
        words = self._words(count)
        for start in range(0, whole, _SLICE_GROUPS):
            part = slice(start * _GROUP, min(start + _SLICE_GROUPS, whole) * _GROUP)
            values[part] = _box_muller(words[part])
        if rest:
            # torch spends words on the incomplete group, then redraws the last 16 values, old ones among them.
            values[-_GROUP:] = _box_muller(self._words(_GROUP))
        return values

    def _next_double(self) -> float:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        turn, tail = self._uniform_double(), self._uniform_double()
        # Python's math calls the C library, as torch does here; numpy's own sin and cos may differ in the last bit.
        radius = math.sqrt(-2.0 * math.log1p(-tail))
        angle = 2.0 * math.pi * turn
        # Adding 0.0, torch's mean, turns -0.0 into 0.0.
        self._spare = radius * math.sin(angle) + 0.0
        return radius * math.cos(angle) + 0.0

    def _uniform_double(self) -> float:
        high, low = self._words(2).tolist()
        return math.ldexp((high << 32 | low) % 2**_DOUBLE_BITS, -_DOUBLE_BITS)


def _box_muller(words: WordArray) -> Float32Array:
    """Normal float32 values from 32-bit words, 16 at a time: 8 for the radii, then 8 for the angles."""
    uniform = ((words & _UNIFORM_MASK).astype(np.float32) * _UNIFORM_STEP).reshape(-1, 2, _GROUP // 2)
    radius = _radius(uniform[:, 0])
    sine, cosine = _sine_cosine(uniform[:, 1])
    values = np.empty_like(uniform)
    np.multiply(radius, cosine, out=values[:, 0])
    np.multiply(radius, sine, out=values[:, 1])
    values += np.float32(0)  # torch's mean: turns -0.0 into 0.0
    return values.reshape(-1)


# The arrays below are float64 but hold float32 values: a product of two is exact, so rounding once after the sum is a
# fused multiply-add. The sum is itself rounded to 53 bits first; that never shows: the radius, sine and cosine of all
# 2**24 uniforms were compared with torch's.


def _rounded(exact: Float64Array) -> Float64Array:
    return exact.astype(np.float32).astype(np.float64)


def _fma(a: Float64Array, b: Float64Array | float, c: Float64Array | float) -> Float64Array:
    product = a * b
    product += c
    return _rounded(product)


def _polynomial(x: Float64Array, coefficients: tuple[float, ...]) -> Float64Array:
    value = _fma(x, coefficients[0], coefficients[1])
    for coefficient in coefficients[2:]:
        value = _fma(value, x, coefficient)
    return value


def _radius(uniform: Float32Array) -> Float32Array:
    """sqrt(-2 log(1 - uniform)), the logarithm as in Cephes logf."""
    mantissa32, exponent32 = np.frexp(np.float32(1) - uniform)
    mantissa = mantissa32.astype(np.float64)
    low = mantissa < _SQRT_HALF
    exponent = exponent32 - low.astype(np.float64)
    x = mantissa * low + mantissa - 1.0
    square = _rounded(x * x)
    tail = _rounded(_polynomial(x, _LOG) * x)
    tail = _fma(tail, square, _rounded(exponent * _LN2_LOW))
    tail = _fma(square, -0.5, tail)
    log = _fma(exponent, _LN2_HIGH, _rounded(x + tail))
    return np.sqrt((-2.0 * log).astype(np.float32))


def _sine_cosine(uniform: Float32Array) -> tuple[Float32Array, Float32Array]:
    """sin and cos of 2 pi uniform, as in Cephes sinf and cosf."""
    angle = _rounded(uniform.astype(np.float64) * _TWO_PI)
    octant = (_rounded(angle * _FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    turns = octant.astype(np.float64)
    for part in _PI_4_PARTS:
        angle = _fma(turns, -part, angle)
    square = _rounded(angle * angle)
    tail = _rounded(_polynomial(square, _COS) * square)
    near_one = _rounded(_fma(tail, square, -0.5 * square) + 1.0).astype(np.float32)
    tail = _rounded(_polynomial(square, _SIN) * square)
    near_zero = _fma(tail, angle, angle).astype(np.float32)
    swapped = (octant & 2) != 0
    sine = np.where(swapped, near_one, near_zero)
    cosine = np.where(swapped, near_zero, near_one)
    return _negated(sine, octant & 4), _negated(cosine, (octant + 2) & 4)


def _negated(values: Float32Array, four: npt.NDArray[np.int32]) -> Float32Array:
    """The values, their sign bit flipped where `four` is 4 and kept where it is 0."""
    flipped: Float32Array = (values.view(np.int32) ^ (four << 29)).view(np.float32)
    return flipped
