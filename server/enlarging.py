"""How the first pass of a request is made larger for its second, which draws what is missing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.image import Pixels
from server.interpolation import interpolate
from server.noise import Float32Array

# Mode and antialiasing of torch's interpolation, by the names of A1111's latent upscalers.
LATENT: dict[str, tuple[str, bool]] = {
    "latent": ("bilinear", False),
    "latent_nearest": ("nearest", False),
    "latent_bicubic": ("bicubic", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic_antialiased": ("bicubic", True),
}
PIXEL = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def enlarged_latent(latent: Float32Array, upscaler: str, size: tuple[int, int]) -> Float32Array:
    """(c, h, w) to (c, *size)."""
    mode, antialias = LATENT[upscaler]
    return interpolate(latent, size, mode, antialias)


def enlarged_pixels(pixels: Pixels, upscaler: str, size: tuple[int, int]) -> Pixels:
    """(h, w, 3) to (*size, 3)."""
    height, width = size
    enlarged: npt.NDArray[np.uint8] = np.array(Image.fromarray(pixels).resize((width, height), PIXEL[upscaler]))
    return enlarged
