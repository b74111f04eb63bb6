"""The passes over a batch's latents between UNet calls, compiled: each reads and writes memory once.

numpy would make a pass for every term of the sum. Blocks are small enough for the first-level cache, and arithmetic is
single precision in a fixed order for each row alone, so that a row's bits do not depend on its company.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from server.blend import KNOWN, KNOWN_NOISE, MASK
from server.table import A1, FUSED_M, FUSED_X, HISTORY, KEEPS_H, KEEPS_X, B, N, U, V

# What a job keeps: its latent, the one before, its outputs (that of call s at H + s % HISTORY) and fresh noise.
X, X_PREV, H = 0, 1, 2
NOISE = H + HISTORY
KEPT = NOISE + 1
# Floats between two kept latents beyond their size. Latents are as large as a power of two; without a gap, the same
# element of all of them would fall into the same few lines of a cache.
GAP = 528
# Floats of a block: a few buffers of this size stay in 32 KiB.
BLOCK = 2048

_states = types.Array(types.float32, 3, "C")
_rows = types.Array(types.float32, 2, "C")
_floats = types.Array(types.float32, 1, "C")
_integers = types.Array(types.int64, 1, "C")


@njit(types.void(_states, _integers, _integers, _integers, _floats, _rows), nogil=True, cache=True)  # type: ignore[untyped-decorator]
def gather(state: Any, slots: Any, owners: Any, order: Any, c_in: Any, sample: Any) -> None:
    """The UNet's latents: sample[row] = c_in[job] * its latent for job = owners[row]; zeros for a job of -1.

    What follows a latent in its row is left as it is. Rows are written in this order: those of a job one after the
    other, while its latent is in the cache.
    """
    size = state.shape[2] - GAP
    for row in order:
        target, job = sample[row, :size], owners[row]
        if job < 0:
            target[:] = 0
            continue
        source, scale = state[slots[job], X], c_in[job]
        for k in range(len(target)):
            target[k] = source[k] * scale


@njit(types.void(types.Array(types.int32, 2, "C"), _integers, _integers), nogil=True, cache=True)  # type: ignore[untyped-decorator]
def find_broken(bits: Any, owners: Any, broken: Any) -> None:
    """Set broken[job] to 1 where a row of the job has a value that is not finite.

    Args:
        bits: (rows, size) the UNet's output seen as integers; of a float that is not finite all exponent bits are set.
        owners: (rows,) as in `gather`.
        broken: (jobs,)
    """
    for row in range(bits.shape[0]):
        values, largest = bits[row], np.int32(0)
        for k in range(len(values)):
            largest = max(largest, values[k] & np.int32(0x7FFFFFFF))
        if owners[row] >= 0 and largest >= np.int32(0x7F800000):
            broken[owners[row]] = 1


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _guided(m: Any, output: Any, row: int, negative: int, scales: Any, further: int, start: int) -> None:
    """Classifier-free guidance of one block: m = negative + sum of scale * (positive - negative)."""
    length = len(m)
    positive = output[row, start : start + length]
    if negative < 0:
        for k in range(length):
            m[k] = positive[k]
        return
    other = output[negative, start : start + length]
    scale = scales[0]
    for k in range(length):
        m[k] = (positive[k] - other[k]) * scale + other[k]
    for i in range(1, len(scales)):
        positive = output[further + i - 1, start : start + length]
        scale = scales[i]
        for k in range(length):
            m[k] += (positive[k] - other[k]) * scale


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _deviation(values: Any) -> Any:
    """Of a sample, as torch's `std`: divided by n - 1."""
    mean = 0.0
    for k in range(len(values)):
        mean += values[k]
    mean /= len(values)
    squares = 0.0
    for k in range(len(values)):
        squares += (values[k] - mean) ** 2
    return np.sqrt(squares / max(len(values) - 1, 1))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _rescaling(output: Any, row: int, negative: int, scales: Any, further: int, share: float) -> Any:
    """Lin et al. (2023), 3.4: the guided output takes on some of the positive's deviation."""
    m = np.empty(output.shape[1], np.float32)
    _guided(m, output, row, negative, scales, further, 0)
    # A result without deviation has nothing to rescale.
    deviation = _deviation(m)
    return share * _deviation(output[row]) / (deviation if deviation > 0 else 1.0) + 1 - share


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add(target: Any, source: Any, start: int, factor: Any) -> None:
    length = len(target)
    block = source[start : start + length]
    if factor != 0:
        for k in range(length):
            target[k] += block[k] * factor


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _blend(values: Any, lines: Any, start: Any, alpha: Any, sigma: Any) -> None:
    """One block: where it is not repainted, the known latent at this level is put back."""
    length = len(values)
    mask = lines[MASK, start : start + length]
    clean = lines[KNOWN, start : start + length]
    noise = lines[KNOWN_NOISE, start : start + length]
    for k in range(length):
        # Nothing is added where nothing should be: not even the sign of a zero changes, and no infinity counts.
        known = clean[k] * alpha + noise[k] * sigma if sigma != 0 else clean[k] * alpha
        values[k] = values[k] * mask[k] + known if mask[k] != 0 else known


_advanced = (_states, _rows, _rows, *(_integers,) * 4, _floats, _floats)


@njit(  # type: ignore[untyped-decorator]
    [types.void(*_advanced, types.none, types.none), types.void(*_advanced, _states, _rows)],
    nogil=True,
    cache=True,
)
def advance(
    state: Any,
    output: Any,
    moves: Any,
    slots: Any,
    steps: Any,
    negatives: Any,
    further: Any,
    shares: Any,
    scales: Any,
    blends: Any,
    levels: Any,
) -> None:
    """Guide the UNet's output and move every job's latent along its line of the table, in place.

    Args:
        state: (capacity, KEPT, pitch), of which the first size are used.
        output: (rows, size): positives of the jobs, then negatives, then further positives; padding may follow.
        moves: (jobs, ...) of the tables.
        slots, steps: (jobs,) lines in the state, -1 for a job that is not to be moved; and UNet calls done.
        negatives: (jobs,) rows; -1 where a job has none.
        further: (jobs + 1,) first rows of the further positives.
        shares: (jobs,) how much of guidance is rescaled.
        scales: (jobs + further positives,) guidance scales, job after job.
        blends: (capacity, PARTS, pitch) of `server.blend`; None where no job blends, compiled apart to cost nothing.
        levels: (jobs, 2) alpha and sigma of the known latents that are put back, zeros for a job without; or None.
    """
    size = output.shape[1]
    buffer, sums = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    first_scale = 0
    for i in range(len(slots)):
        slot, step, negative, line = slots[i], steps[i], negatives[i], moves[i]
        more = further[i + 1] - further[i]
        scale = scales[first_scale : first_scale + 1 + more]
        first_scale += 1 + more
        if slot < 0:
            continue
        rescaled = shares[i] != 0 and negative >= 0
        rescale = np.float32(_rescaling(output, i, negative, scale, further[i], shares[i]) if rescaled else 1.0)
        kept = state[slot]
        for start in range(0, size, BLOCK):
            length = min(BLOCK, size - start)
            total, latent = sums[:length], kept[X, start : start + length]
            if negative < 0:
                m = output[i, start : start + length]
            else:
                m = buffer[:length]
                _guided(m, output, i, negative, scale, further[i], start)
            if rescaled:
                for k in range(length):
                    m[k] *= rescale
            own, new = line[FUSED_X], line[FUSED_M]
            for k in range(length):
                total[k] = latent[k] * own + m[k] * new
            _add(total, kept[X_PREV], start, line[A1])
            for age in range(1, HISTORY):
                _add(total, kept[H + (step - age) % HISTORY], start, line[B + age])
            _add(total, kept[NOISE], start, line[N])
            if line[KEEPS_X] != 0:
                target = kept[X_PREV, start : start + length]
                for k in range(length):
                    target[k] = latent[k]
            if line[KEEPS_H] != 0:
                u, v = line[U], line[V]
                target = kept[H + step % HISTORY, start : start + length]
                for k in range(length):
                    target[k] = latent[k] * u + m[k] * v
            if levels is not None and (levels[i, 0] != 0 or levels[i, 1] != 0):
                _blend(total, blends[slot], start, levels[i, 0], levels[i, 1])
            for k in range(length):
                latent[k] = total[k]


@njit(  # type: ignore[untyped-decorator]
    types.void(_floats, _rows, types.int64, types.int64, _floats, types.int64, types.float32, _floats, _floats),
    nogil=True,
    cache=True,
)
def estimate(
    latent: Any, output: Any, row: Any, negative: Any, scales: Any, further: Any, share: Any, parts: Any, clean: Any
) -> None:
    """The clean latent that the guided output of one job says is in `latent`: parts[0] * latent + parts[1] * m."""
    _guided(clean, output, row, negative, scales, further, 0)
    rescale = np.float32(1)
    if share != 0 and negative >= 0:
        rescale = np.float32(_rescaling(output, row, negative, scales, further, share))
    for k in range(len(clean)):
        clean[k] = parts[0] * latent[k] + parts[1] * (clean[k] * rescale)


@njit(types.void(_floats, _rows), nogil=True, cache=True)  # type: ignore[untyped-decorator]
def put_back(clean: Any, lines: Any) -> None:
    """What an estimate of the clean latent becomes where a job repaints only a part; `lines` are its blend's."""
    _blend(clean, lines, 0, np.float32(1), np.float32(0))


def flat(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n, ...) to (n, size), without a copy."""
    return values.reshape(len(values), -1)
