"""Resizing of float arrays, equal to `torch.nn.functional.interpolate` without `align_corners`, made with numpy alone.

Matches torch 2.13's CPU kernels (ATen/native/UpSample.h and cpu/UpSampleKernel.cpp). Every mode is separable: a weight
matrix for the rows and one for the columns. Positions are rounded to float32 where torch rounds them, since that shows:
at 512 pixels it moves a position by up to 3e-5 of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from server.noise import Float32Array, Float64Array

Indices: TypeAlias = npt.NDArray[np.int64]

NEAREST: Final = ("nearest", "nearest-exact")
SMOOTH: Final = ("bilinear", "bicubic")
MODES: Final = (*NEAREST, *SMOOTH)
# The cubic convolution's parameter. torch has another one where it antialiases, which is Pillow's.
_CUBIC: Final = -0.75
_CUBIC_ANTIALIASED: Final = -0.5


def interpolate(values: Float32Array, size: tuple[int, int], mode: str, antialias: bool = False) -> Float32Array:
    """Resize the last two axes.

    AUTOMATIC1111's latent upscalers are `bilinear` ("Latent"), `bicubic`, both also antialiased, `nearest` and
    `nearest-exact`.

    Args:
        values: (..., h, w), not empty.
        size: (height, width) of the result, in the same unit as h and w.
        mode: one of `MODES`.
        antialias: where the result is smaller, average over all that a value covers; `bilinear` and `bicubic` only.

    Returns:
        A new float32 array (..., height, width); equal to torch's within 1e-5, for values around 1, but where torch
        antialiases to a width of 1: it then repeats the first row, which is a fault.

    Raises:
        ValueError: an unknown mode, antialiasing of one that has none, or a side below 1.

    Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981; ATen as above.
    """
    if mode not in MODES:
        raise ValueError(f"interpolation mode {mode!r} is unknown: use {', '.join(MODES)}")
    if antialias and mode not in SMOOTH:
        raise ValueError(f"interpolation mode {mode!r} cannot be antialiased: use {' or '.join(SMOOTH)}, or none")
    height, width = values.shape[-2:]
    if min(*size, height, width) < 1:
        raise ValueError(f"cannot resize {height}x{width} to {size[0]}x{size[1]}: give sides of 1 or more")
    if mode in NEAREST:
        rows, columns = (_nearest(n, m, mode) for n, m in zip((height, width), size, strict=True))
        return np.ascontiguousarray(values[..., rows[:, None], columns], dtype=np.float32)
    rows_by, columns_by = (weights(n, m, mode, antialias) for n, m in zip((height, width), size, strict=True))
    resized: Float32Array = (rows_by @ values.astype(np.float32, copy=False)) @ columns_by.T
    return resized


def weights(length: int, resized: int, mode: str, antialias: bool = False) -> Float32Array:
    """(resized, length): what each value of a resized axis takes of the old ones; rows sum to 1.

    Args:
        mode: `bilinear` or `bicubic`.
    """
    index, tap_weights = (_averaging if antialias else _interpolating)(length, resized, mode)
    matrix = np.zeros((resized, length), np.float32)
    np.add.at(matrix, (np.arange(resized)[:, None], index), tap_weights.astype(np.float32))
    return matrix


def _scale(length: int, resized: int) -> np.float32:
    return np.float32(length) / np.float32(resized)


def _nearest(length: int, resized: int, mode: str) -> Indices:
    at = np.arange(resized, dtype=np.float32)
    if mode == "nearest-exact":
        at += np.float32(0.5)
    return np.minimum((at * _scale(length, resized)).astype(np.int64), length - 1)


def _positions(length: int, resized: int) -> Float64Array:
    """Where the centres of the resized axis lie on the old one: a product and a sum, rounded once (torch's FMA)."""
    exact = (np.arange(resized) + 0.5) * np.float64(_scale(length, resized)) - 0.5
    return exact.astype(np.float32).astype(np.float64)


def _interpolating(length: int, resized: int, mode: str) -> tuple[Indices, Float64Array]:
    """(resized, taps) old indices, the edges repeated, and their weights."""
    at = _positions(length, resized)
    if mode == "bilinear":
        at = np.maximum(at, 0)
    first = np.minimum(np.floor(at), length - 1).astype(np.int64)
    taps = np.arange(2) if mode == "bilinear" else np.arange(-1, 3)
    distance = taps - np.clip(at - first, 0, 1)[:, None]
    kernel = _triangle if mode == "bilinear" else _cubic(_CUBIC)
    return np.clip(first[:, None] + taps, 0, length - 1), kernel(distance)


def _averaging(length: int, resized: int, mode: str) -> tuple[Indices, Float64Array]:
    """As `_interpolating`; where the axis shrinks, the kernel is as much wider, and cut off at the edges."""
    scale = np.float64(_scale(length, resized))
    wider = max(float(scale), 1.0)
    support = wider * (1 if mode == "bilinear" else 2)
    centre = ((np.arange(resized) + 0.5) * scale).astype(np.float32).astype(np.float64)[:, None]
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), length)
    index = first + np.arange(int(np.ceil(support)) * 2 + 1)
    kernel = _triangle if mode == "bilinear" else _cubic(_CUBIC_ANTIALIASED)
    found = np.where(index < end, kernel((index - centre + 0.5) / wider), 0)
    return np.minimum(index, length - 1), found / found.sum(axis=1, keepdims=True)


def _triangle(distance: Float64Array) -> Float64Array:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(a: float) -> Callable[[Float64Array], Float64Array]:
    """Keys' kernel; zero from 2 on."""

    def kernel(distance: Float64Array) -> Float64Array:
        x = np.abs(distance)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    return kernel
