"""Canvases of outpainting: a picture with room around it, and the mask that has the room painted."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from server.errors import InvalidRequest
from server.fields import Fill
from server.image import Pixels
from server.picture_files import PictureLimits

GREY = 128
# Side of the piece of noise that is made and repeated, pixels; its own edges fit together.
TILE = 1024
# Keeps this noise apart from the request's other draws.
_STREAM = 0x0E7
_WORD = 2**32


@dataclass(frozen=True, slots=True)
class Extension:
    """Pixels to add on each side."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


def extend(
    pixels: Pixels, extension: Extension, limits: PictureLimits, *, fill: Fill = "edge", feather: int = 8, seed: int = 0
) -> tuple[Pixels, Pixels]:
    """Canvas (h, w, 3) and mask (h, w) of a picture (h, w, 3) with room on its sides.

    The canvas holds the picture's own pixels; `only_masked.paste_back(canvas, drawn, whole_box(canvas), mask)` gives
    them back in the end, bit for bit where the mask is 0.

    Args:
        fill: of the room: `edge` repeats the outermost pixels, `mirror` reflects the picture, `grey` is grey, `noise`
            has the picture's colours and textures in random places.
        feather: pixels of the picture, along the sides that are extended, over which the mask fades to 0, linearly.
        seed: of the noise, 0 <= seed < 2**64.

    Raises:
        InvalidRequest: nothing to add, a negative amount, a canvas beyond the limits, or a feather that leaves nothing.
    """
    height, width = pixels.shape[:2]
    _check(extension, height, width, limits, feather)
    rows, columns = (extension.top, extension.bottom), (extension.left, extension.right)
    mask: Pixels = np.maximum(_fade(height, *rows, feather)[:, None], _fade(width, *columns, feather))
    canvas = _canvas(pixels, rows, columns, fill, seed)
    canvas[extension.top : extension.top + height, extension.left : extension.left + width] = pixels
    return canvas, mask


def _check(extension: Extension, height: int, width: int, limits: PictureLimits, feather: int) -> None:
    amounts = {f"extend_{field.name}": getattr(extension, field.name) for field in fields(extension)}
    for name, amount in amounts.items():
        if amount < 0:
            raise InvalidRequest(f"{name} is {amount}; send 0 or more pixels: outpainting only adds")
    if not any(amounts.values()):
        raise InvalidRequest(
            f"{', '.join(amounts)} are all 0, so there is nothing to paint; send pixels for one of them"
        )
    full_height = height + extension.top + extension.bottom
    full_width = width + extension.left + extension.right
    if max(full_height, full_width) > limits.max_side or full_height * full_width > limits.max_pixels:
        raise InvalidRequest(
            f"the picture with {', '.join(amounts)} has width {full_width} and height {full_height}; this server takes "
            f"sides of at most {limits.max_side} and {limits.max_pixels} pixels in all: extend it by less"
        )
    ends = (
        (height, (extension.top > 0) + (extension.bottom > 0)),
        (width, (extension.left > 0) + (extension.right > 0)),
    )
    most = min((length - 1) // fading for length, fading in ends if fading)
    if not 0 <= feather <= most:
        raise InvalidRequest(
            f"feather is {feather}; this picture takes 0 to {most} pixels, so that some of it stays: send one of these"
        )


def _fade(length: int, before: int, after: int, feather: int) -> Pixels:
    """255 in the room, from there on falling evenly, and 0 from `feather` pixels inside on."""
    inside = np.arange(length)
    far = np.full(length, feather)
    depth = np.minimum(inside if before else far, inside[::-1] if after else far)
    falling = np.maximum(feather - depth, 0) / (feather + 1)
    fade: Pixels = np.rint(255 * np.concatenate([np.ones(before), falling, np.ones(after)])).astype(np.uint8)
    return fade


def _canvas(pixels: Pixels, rows: tuple[int, int], columns: tuple[int, int], fill: Fill, seed: int) -> Pixels:
    """The room filled; what lies under the picture may be anything."""
    sides = (rows, columns, (0, 0))
    if fill == "grey":
        return np.pad(pixels, sides, constant_values=GREY)
    if fill == "noise":
        height, width = pixels.shape[0] + sum(rows), pixels.shape[1] + sum(columns)
        tile = matched_noise(pixels[:TILE, :TILE], min(height, TILE), min(width, TILE), seed)
        return np.pad(tile, ((0, height - tile.shape[0]), (0, width - tile.shape[1]), (0, 0)), mode="wrap")
    return np.pad(pixels, sides, mode="edge" if fill == "edge" else "symmetric")


def matched_noise(pixels: Pixels, height: int, width: int, seed: int) -> Pixels:
    """(`height`, `width`, 3) of random texture with the mean, deviation and spectrum of the picture, without a seam.

    The picture's Fourier phases are turned at random, all channels alike, so that colours keep belonging together.

    Args:
        pixels: (h, w, 3), no larger than what is asked for.

    Source: Galerne, Gousseau, Morel, "Random Phase Textures" (2011); A1111's outpainting mk2 has the idea.
    """
    mean = pixels.mean((0, 1))
    centred = np.zeros((height, width, 3))
    centred[: pixels.shape[0], : pixels.shape[1]] = pixels - mean
    generator = np.random.RandomState([seed % _WORD, seed // _WORD, _STREAM])
    white = np.fft.rfft2(generator.standard_normal((height, width)))
    turns = white / np.maximum(np.abs(white), np.finfo(np.float64).tiny)
    scale = np.sqrt(height * width / (pixels.shape[0] * pixels.shape[1]))
    texture = np.empty_like(centred)
    for channel in range(3):
        spectrum = np.fft.rfft2(centred[..., channel]) * turns
        texture[..., channel] = np.fft.irfft2(spectrum, (height, width)) * scale + mean[channel]
    return np.clip(np.rint(texture), 0, 255).astype(np.uint8)
