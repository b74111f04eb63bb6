"""VAEs run tile by tile, so that memory does not grow with the picture, and tiles joined so that no seam is seen.

A VAE is not local: its GroupNorms and its middle attention see the whole of what they are given, so a tile's tone
differs from what the whole picture would have there; and near a cut edge its convolutions see zeros. Hence tiles
overlap a good deal, the ends of an overlap are thrown away, and across the rest one tile fades into the next.

All tiles have one shape, which is what an engine with fixed shapes takes: they are spread evenly and lie inside the
picture, which needs to be no multiple of anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final, TypeAlias

import numpy as np

from server.noise import Float32Array, Float64Array

Network: TypeAlias = Callable[[Float32Array], Float32Array]

# Of tiles of 16, on the embedded checkpoint: the steepest seam across plain background is 1.6 of 255 per pixel, with
# diffusers' geometry 3.5, decoded whole 2.1. Without a margin it is a little steeper, with less overlap up to twice.
OVERLAP: Final = 0.5
MARGIN: Final = 0.125


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a picture is cut.

    Attributes:
        tile: (height, width) in values of the latent.
        overlap: what each tile shares with the next one at least, as a part of its side; 0 <= overlap < 1.
        margin: what is thrown away at each end of an overlap, as a part of it; 0 <= margin < 0.5.
        batch: tiles of one call, at most.
        padded: whether a picture that is smaller than a tile is extended to one, mirrored at its lower and right edge,
            for an engine that takes no other shape. Otherwise the tile shrinks to the picture, which is exact.
    """

    tile: tuple[int, int]
    overlap: float = OVERLAP
    margin: float = MARGIN
    batch: int = 1
    padded: bool = False

    def __post_init__(self) -> None:
        if min(*self.tile, self.batch) < 1 or not 0 <= self.overlap < 1 or not 0 <= self.margin < 0.5:
            raise ValueError(
                f"{self} cannot be used: give sides and a batch of 1 or more, an overlap from 0 to below 1 "
                "and a margin from 0 to below 0.5"
            )


def tiled_decode(decode: Network, latents: Float32Array, downscale: int, tiling: Tiling) -> Float32Array:
    """Decode latents of any size. Where they fit into one tile this is `decode` itself, in calls of `batch` images.

    Besides the result, memory is taken for one call only.

    Args:
        decode: (n, c, h, w) latents to (n, 3, f*h, f*w), f being `downscale`.
        latents: (n, c, h, w), not empty; tiles of several images may share a call.
        downscale: pixels per value of a latent.

    Returns:
        A new float32 array (n, 3, f*h, f*w).
    """
    return _tiled(decode, latents, (1, downscale), tiling)


def tiled_encode(encode: Network, pictures: Float32Array, downscale: int, tiling: Tiling) -> Float32Array:
    """Encode pictures of any size, as `tiled_decode`. What is blended are moments: draw from them afterwards.

    Args:
        encode: (n, 3, f*h, f*w) pictures to (n, 2c, h, w) moments, f being `downscale`.
        pictures: (n, 3, f*h, f*w) in [-1, 1], not empty.
        downscale: pixels per value of a latent.

    Returns:
        A new float32 array (n, 2c, h, w).

    Raises:
        ValueError: a side is no multiple of `downscale`.
    """
    height, width = pictures.shape[-2:]
    if height % downscale or width % downscale:
        raise ValueError(f"a picture of {height}x{width} pixels cannot be encoded: give multiples of {downscale}")
    return _tiled(encode, pictures, (downscale, 1), tiling)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles of one length begin, spread evenly from 0 to length - tile, each sharing `overlap` at least.

    Args:
        length: of the axis, at least `tile`.
        overlap: part of a tile; 0 <= overlap < 1.
    """
    stride = max(tile - math.ceil(tile * overlap), 1)
    count = 1 + math.ceil((length - tile) / stride)
    return [round(index * (length - tile) / max(count - 1, 1)) for index in range(count)]


def tile_windows(starts: list[int], tile: int, margin: float, scale: int = 1) -> Float32Array:
    """(tiles, tile * scale): how much of each tile is taken, across it; at every place the tiles' parts sum to 1.

    Across an overlap a tile's part is a raised cosine, 0 in the margin; at the ends of the axis there is none.

    Args:
        starts: of the tiles, ascending, as `tile_starts` gives them.
        scale: values of the result per value that `starts` and `tile` count.
    """
    across = (np.arange(tile * scale) + 0.5) / scale
    parts = np.ones((len(starts), tile * scale))
    for index, (start, following) in enumerate(pairwise(starts)):
        shared = start + tile - following
        parts[index + 1] *= _rise(across, shared, margin)
        parts[index] *= _rise(tile - across, shared, margin)
    total = np.zeros((starts[-1] + tile) * scale)
    for start, part in zip(starts, parts, strict=True):
        total[start * scale : (start + tile) * scale] += part
    for start, part in zip(starts, parts, strict=True):
        part /= total[start * scale : (start + tile) * scale]
    return parts.astype(np.float32)


def _rise(distance: Float64Array, shared: int, margin: float) -> Float64Array:
    """From 0 at a tile's edge to 1 where the overlap ends."""
    if shared == 0:
        return np.ones_like(distance)
    part = np.clip((distance / shared - margin) / (1 - 2 * margin), 0, 1)
    rise: Float64Array = 0.5 - 0.5 * np.cos(np.pi * part)
    return rise


def _tiled(network: Network, values: Float32Array, scales: tuple[int, int], tiling: Tiling) -> Float32Array:
    """`scales`: of what comes in and what goes out, per value of the latent."""
    into, out = scales
    height, width = (side // into for side in values.shape[-2:])
    if tiling.padded:
        values = _extended(values, [side * into for side in tiling.tile])
    whole = [side // into for side in values.shape[-2:]]
    tile = [min(side, length) for side, length in zip(tiling.tile, whole, strict=True)]
    if tile == whole:
        calls = range(0, len(values), tiling.batch)
        joined = np.concatenate([network(values[start : start + tiling.batch]) for start in calls])
    else:
        joined = _joined(network, values, scales, tile, tiling)
    return joined[..., : height * out, : width * out]


def _joined(
    network: Network, values: Float32Array, scales: tuple[int, int], tile: list[int], tiling: Tiling
) -> Float32Array:
    into, out = scales
    lengths = [side // into for side in values.shape[-2:]]
    starts = [tile_starts(length, side, tiling.overlap) for length, side in zip(lengths, tile, strict=True)]
    windows = [tile_windows(s, side, tiling.margin, out) for s, side in zip(starts, tile, strict=True)]
    joined: Float32Array | None = None
    for call in _calls(product(range(len(values)), *(range(len(s)) for s in starts)), tiling.batch):
        corners = [(image, starts[0][row], starts[1][column]) for image, row, column in call]
        results = network(np.stack([values[image][_box(y, x, tile, into)] for image, y, x in corners]))
        if joined is None:
            joined = np.zeros((len(values), results.shape[1], *(length * out for length in lengths)), np.float32)
        for (image, y, x), (_, row, column), result in zip(corners, call, results, strict=True):
            joined[image][_box(y, x, tile, out)] += result * (windows[0][row][:, None] * windows[1][column])
    assert joined is not None
    return joined


def _box(y: int, x: int, tile: list[int], scale: int) -> tuple[slice, slice, slice]:
    return slice(None), slice(y * scale, (y + tile[0]) * scale), slice(x * scale, (x + tile[1]) * scale)


def _calls(places: Iterator[tuple[int, ...]], batch: int) -> Iterator[list[tuple[int, ...]]]:
    call: list[tuple[int, ...]] = []
    for place in places:
        call.append(place)
        if len(call) == batch:
            yield call
            call = []
    if call:
        yield call


def _extended(values: Float32Array, sides: list[int]) -> Float32Array:
    """Mirrored at the lower and right edge until it has those sides at least."""
    missing = [max(side - length, 0) for side, length in zip(sides, values.shape[-2:], strict=True)]
    if not any(missing):
        return values
    return np.pad(values, [(0, 0), (0, 0), *((0, rows) for rows in missing)], mode="symmetric")
