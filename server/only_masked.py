"""Repainting the surroundings of a mask at full resolution: cut them out, and paste the result back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.image import Pixels
from server.resizing import resize


class Box(NamedTuple):
    """Part of a picture in pixels; `right` and `bottom` lie just outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


def crop_region(mask: Pixels, padding: int, height: int, width: int) -> Box:
    """What holds all of a mask that is not 0, padded, then widened towards the proportions of what is drawn.

    Args:
        mask: (h, w), not 0 everywhere.
        padding: pixels of the mask on each side; less at the picture's edge.
        height: of what is drawn; only its ratio to `width` counts.

    Source: diffusers' `VaeImageProcessor.get_crop_region`, whose answer this is for every mask.
    """
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    (top, bottom), (left, right) = _span(rows, padding), _span(columns, padding)
    proportions = width / height
    if (right - left) / (bottom - top) > proportions:
        top, bottom = _grown(top, bottom, (right - left) / proportions, len(rows))
    else:
        left, right = _grown(left, right, (bottom - top) * proportions, len(columns))
    return Box(left, top, right, bottom)


def _span(painted: npt.NDArray[np.bool_], padding: int) -> tuple[int, int]:
    places = np.flatnonzero(painted)
    return max(int(places[0]) - padding, 0), min(int(places[-1]) + 1 + padding, len(painted))


def _grown(low: int, high: int, wanted: float, length: int) -> tuple[int, int]:
    """Grown on both sides to `wanted`, moved inside 0 to `length`, and cut where it is longer than that."""
    extra = int(wanted - (high - low))
    low, high = low - extra // 2, high + extra - extra // 2
    beyond = max(high - length, 0)
    low, high = low - beyond, high - beyond
    return max(low, 0), min(high - min(low, 0), length)


def cut_out(pixels: Pixels, box: Box, height: int, width: int) -> Pixels:
    """The box of a picture (h, w, 3) or a mask (h, w) at the size that is drawn, padded if its proportions differ."""
    return resize(pixels[box.top : box.bottom, box.left : box.right], height, width, mode="pad")


def paste_back(original: Pixels, generated: Pixels, box: Box, mask: Pixels) -> Pixels:
    """The original (h, w, 3) with what was drawn in place of its box, mixed by the mask.

    Pixels under 0 of the mask, and all outside the box, are the original's bit for bit; under 255 they are what was
    drawn; between, the two mixed in proportion.

    Args:
        generated: what was drawn from `cut_out(original, box, ...)`, of any size; scaled to the box.
        mask: (h, w) of the original.
    """
    whole = Image.fromarray(np.ascontiguousarray(original))
    drawn = Image.fromarray(resize(generated, box.height, box.width, mode="crop"))
    whole.paste(drawn, box, Image.fromarray(np.ascontiguousarray(mask)).crop(box))
    return np.array(whole)


def whole_box(pixels: Pixels) -> Box:
    """The box that is all of a picture or mask, for pasting back what was repainted whole."""
    return Box(0, 0, pixels.shape[1], pixels.shape[0])
