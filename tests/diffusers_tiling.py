"""VAEs run tile by tile exactly as diffusers' `enable_vae_tiling` does, for pictures that must equal its own.

Tiles begin at every stride, those at the lower and right edges are smaller, and a tile fades linearly into its upper
neighbour, then into its left one. `server.tiling` has fewer seams, and tiles of one shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from server.noise import Float32Array
from server.tiling import Network

OVERLAP = 0.25


def tiled_decode(
    decode: Network, latents: Float32Array, downscale: int, tile: int, overlap: float = OVERLAP, batch: int = 1
) -> Float32Array:
    """Equal to `AutoencoderKL.decode` with tiling enabled.

    Besides the result, memory is taken for one call and the lowest rows of a row of tiles.

    Args:
        decode: (n, c, h, w) latents to (n, 3, f*h, f*w), f being `downscale`; several shapes.
        latents: (n, c, h, w); where it fits into a tile this is `decode` itself.
        tile: side of a tile in values of the latent (diffusers' `tile_latent_min_size`).
        overlap: part of a tile's side, a whole number of values (diffusers' `tile_overlap_factor`).
        batch: tiles of one call, at most, unless one tile of all images is more.

    Returns:
        A new float32 array (n, 3, f*h, f*w).

    Raises:
        ValueError: the overlap is no whole number of values; diffusers' result would have another size.
    """
    return _tiled(decode, latents, (1, downscale), tile, _shared(tile, overlap), batch)


def tiled_encode(
    encode: Network, pictures: Float32Array, downscale: int, tile: int, overlap: float = OVERLAP, batch: int = 1
) -> Float32Array:
    """Moments equal to those of `AutoencoderKL.encode` with tiling enabled; arguments as `tiled_decode`.

    Args:
        encode: (n, 3, f*h, f*w) pictures to (n, 2c, h, w) moments.
        pictures: (n, 3, f*h, f*w) in [-1, 1].
        tile: in values of the latent, too.
    """
    return _tiled(encode, pictures, (downscale, 1), tile, _shared(tile, overlap), batch)


def _shared(tile: int, overlap: float) -> int:
    shared = round(tile * overlap)
    if shared != tile * overlap or not 0 <= shared < tile:
        raise ValueError(
            f"tiles of {tile} values cannot overlap by {overlap}: give a part of 0 to below 1 that is a whole number "
            f"of values, as 0.25 of a multiple of 4; diffusers would give a picture of another size"
        )
    return shared


def _tiled(
    network: Network, values: Float32Array, scales: tuple[int, int], tile: int, shared: int, batch: int
) -> Float32Array:
    into, out = scales
    height, width = values.shape[-2:]
    if max(height, width) <= tile * into:
        return network(values)
    stride, kept, extent = (tile - shared) * into, (tile - shared) * out, shared * out
    joined: Float32Array | None = None
    lower: list[Float32Array] = []
    for row, top in enumerate(range(0, height, stride)):
        upper, lower, right = lower, [], None
        for column, result in enumerate(
            _row(network, values[:, :, top : top + tile * into], tile * into, stride, batch)
        ):
            if joined is None:
                sides = (side // into * out for side in (height, width))
                joined = np.empty((len(values), result.shape[1], *sides), np.float32)
            if row:
                _fade(upper[column], result)
            if right is not None:
                _fade(right.swapaxes(2, 3), result.swapaxes(2, 3))
            lower.append(_last(result, extent))
            right = _last(result.swapaxes(2, 3), extent).swapaxes(2, 3)
            box = result[:, :, :kept, :kept]
            y, x = row * kept, column * kept
            joined[:, :, y : y + box.shape[2], x : x + box.shape[3]] = box
    assert joined is not None
    return joined


def _row(network: Network, values: Float32Array, side: int, stride: int, batch: int) -> Iterator[Float32Array]:
    """The results of one row of tiles, from left to right; tiles of one shape share calls."""
    images, width = len(values), values.shape[3]
    together = max(batch // images, 1)
    for _, group in groupby(range(0, width, stride), key=lambda left: min(side, width - left)):
        lefts = list(group)
        for first in range(0, len(lefts), together):
            call = lefts[first : first + together]
            results = network(np.concatenate([values[..., left : left + side] for left in call]))
            for index in range(len(call)):
                yield results[index * images : (index + 1) * images].copy()


def _last(result: Float32Array, extent: int) -> Float32Array:
    return result[:, :, max(result.shape[2] - extent, 0) :].copy()


def _fade(before: Float32Array, after: Float32Array) -> None:
    """Blend the last rows of a tile into the first rows of the next one, in place."""
    extent = min(before.shape[2], after.shape[2])
    if extent:
        part = (np.arange(extent, dtype=np.float32) / np.float32(extent))[:, None]
        after[:, :, :extent] = before[:, :, -extent:] * (1 - part) + after[:, :, :extent] * part
