"""Pictures and masks to the size that is drawn, and to the numbers that the VAE encoder takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.fields import ResizeMode
from server.image import Pixels

Array = npt.NDArray[np.float32]


def resize(pixels: Pixels, height: int, width: int, *, mode: ResizeMode = "stretch") -> Pixels:
    """(h, w, 3) or (h, w) uint8 to `height` x `width`, by Pillow's Lanczos filter.

    Args:
        mode: `stretch` to exactly that size, as diffusers does unasked; `crop` to cover it, cut equally on both sides;
            `pad` to fit in it, the bars filled with the outermost rows or columns. The last two are `crop` and `fill`
            in diffusers and lie where they lie there.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if mode == "pad":
        return _padded(image, height, width)
    box = _covering(image.height, image.width, height, width) if mode == "crop" else None
    return np.array(image.resize((width, height), Image.Resampling.LANCZOS, box))


def _padded(image: Image.Image, height: int, width: int) -> Pixels:
    wider = image.width * height > width * image.height
    inner_height = max(1, image.height * width // image.width) if wider else height
    inner_width = width if wider else max(1, image.width * height // image.height)
    inner = np.asarray(image.resize((inner_width, inner_height), Image.Resampling.LANCZOS))
    top, left = height // 2 - inner_height // 2, width // 2 - inner_width // 2
    bars = [(top, height - inner_height - top), (left, width - inner_width - left)]
    return np.pad(inner, bars + [(0, 0)] * (inner.ndim - 2), mode="edge")


def _covering(from_height: int, from_width: int, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the part that is kept, in pixels of the source.

    Cut while scaling, not after as in diffusers: a long strip at the scale that covers would be very large.
    """
    if width * from_height > from_width * height:
        top, bottom = _middle(from_height, from_height * width // from_width, height)
        return 0, top, from_width, bottom
    left, right = _middle(from_width, from_width * height // from_height, width)
    return left, 0, right, from_height


def _middle(length: int, scaled: int, wanted: int) -> tuple[float, float]:
    """Of a length that is scaled to `scaled`, where the `wanted` pixels in its middle come from."""
    start = scaled // 2 - wanted // 2
    return start * length / scaled, (start + wanted) * length / scaled


def to_network(pixels: Pixels) -> Array:
    """(h, w, 3) uint8 to (3, h, w) float32 in [-1, 1], bit for bit as diffusers' `VaeImageProcessor`."""
    scaled: Array = np.float32(2) * (pixels.astype(np.float32) / np.float32(255)) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
