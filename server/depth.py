"""Depth as the fifth channel of a depth UNet's input: what the estimator is shown, and what is made of its answer."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.errors import InvalidRequest
from server.image import Pixels
from server.interpolation import interpolate
from server.noise import Float32Array

# Of the largest magnitude in a map: differences below are what float32's rounding leaves of equal depths.
_FLAT: Final = 1e-6
_GREY_MODES: Final = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_REMEDY: Final = (
    "send grey PNG of 8 or 16 bits, or a float32 array (height, width) of finite depths in any unit, larger is nearer"
)


def estimator_input(pixels: Pixels, side: int) -> Float32Array:
    """What the `depth_estimator` takes: the picture squashed to a square by Pillow's bicubic filter, in [-1, 1].

    Args:
        pixels: (h, w, 3) uint8 RGB of any size.
        side: of the square that the estimator is exported for, in pixels.

    Returns:
        (1, 3, side, side) float32.

    Source: transformers' DPTImageProcessor; it scales by 1/255 in float64 and rounds once, as here.
    """
    squashed = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    scaled = (squashed.astype(np.float64) * (1 / 255)).astype(np.float32)
    half = np.float32(0.5)
    return np.ascontiguousarray(((scaled - half) / half).transpose(2, 0, 1)[None])


def picture_depth(image: Image.Image) -> Float32Array:
    """A depth map that came as a picture: (h, w), in the picture's own unit.

    8 and 16 bits are kept as they are, never cut to 8. A colour picture is taken where its channels are equal; alpha is
    not heeded.

    Raises:
        InvalidRequest: the picture has colours, or its depths are not finite.
    """
    if image.mode in _GREY_MODES:
        return checked_depth(np.asarray(image))
    channels = np.asarray(image.convert("RGB"))
    if not (channels == channels[..., :1]).all():
        raise InvalidRequest(f"depth_map is a picture with colours (mode {image.mode}); depth is one number: {_REMEDY}")
    return checked_depth(channels[..., 0])


def checked_depth(values: npt.NDArray[Any]) -> Float32Array:
    """A depth map that came as an array, as (h, w) float32.

    Args:
        values: (h, w), (1, h, w) or (h, w, 1); integers or floats, larger is nearer.

    Raises:
        InvalidRequest: another shape or type, an empty map, or depths that are not finite in float32.
    """
    if values.dtype.kind not in "uif":
        raise InvalidRequest(f"depth_map has the type {values.dtype}; numbers are needed: {_REMEDY}")
    map_ = values
    if map_.ndim == 3 and 1 in (map_.shape[0], map_.shape[2]):
        map_ = map_[0] if map_.shape[0] == 1 else map_[..., 0]
    if map_.ndim != 2 or map_.size == 0:
        raise InvalidRequest(f"depth_map has the shape {list(values.shape)}; one number per pixel is needed: {_REMEDY}")
    with np.errstate(over="ignore"):
        depth = map_.astype(np.float32)
    if not (finite := np.isfinite(depth)).all():
        wrong = depth.size - int(np.count_nonzero(finite))
        raise InvalidRequest(f"depth_map has {wrong} of {depth.size} values that are NaN or infinite: {_REMEDY}")
    return depth


def depth_channel(depth: Float32Array, size: tuple[int, int], invert: bool = False) -> Float32Array:
    """What follows the latent in a depth UNet's input, the same for all rows and calls of an image.

    Resized with torch's bicubic filter, then spread over [-1, 1]; so a * depth + b with a > 0 gives the same. Each map
    has its own minimum and maximum: A1111, which takes those of the whole batch, lets its neighbours change an image.

    A flat map becomes 0 throughout, where diffusers gives NaN: 0 is neither near nor far, and stays so inverted.

    Args:
        depth: (h, w), finite, in any unit; larger is nearer, as MiDaS and DPT predict it.
        size: (height, width) of the latent.
        invert: larger is farther.

    Returns:
        A new float32 array (1, height, width).

    Source: `StableDiffusionDepth2ImgPipeline.prepare_depth_map` of diffusers.
    """
    resized = interpolate(_spread(depth, float(np.abs(depth).max()))[None], size, "bicubic")
    # A second time: the filter may miss the map's extremes and overshoot others.
    channel = _spread(resized, 1.0)
    return -channel if invert else channel


def _spread(depth: Float32Array, magnitude: float) -> Float32Array:
    """Over [-1, 1]; zeros where the values differ by less than rounding errors of that magnitude."""
    low, high = float(depth.min()), float(depth.max())
    if high - low <= _FLAT * magnitude:
        return np.zeros(depth.shape, np.float32)
    # In float64: the range of a float32 map may be more than float32 holds.
    spread: Float32Array = (2 * (depth.astype(np.float64) - low) / (high - low) - 1).astype(np.float32)
    return spread
