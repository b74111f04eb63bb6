"""Says which shape, in which colour, on which background a picture of the embedded checkpoint's world shows.

Colours are the nearest of the palette; shapes are matched with templates drawn from the same outlines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Pixels: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]

WORLD_FOLDER = Path(__file__).resolve().parents[2] / "export" / "embedded"
TEMPLATE_SIDE = 32
BORDER = 4
# Half the smallest distance between two colours of the palette is about 40 of 441.
CONTRAST = 45.0


def read_world(folder: Path = WORLD_FOLDER) -> dict[str, Any]:
    """Colours and outlines of the embedded checkpoint's world."""
    world: dict[str, Any] = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    return world


@dataclass(frozen=True, slots=True)
class Sight:
    """What a picture shows; None where nothing stands out from the background."""

    background: str
    colour: str | None
    shape: str | None


class Judge:
    """Looks at pictures with one object.

    Args:
        folder: with `world.json`.
    """

    def __init__(self, folder: Path = WORLD_FOLDER) -> None:
        world = read_world(folder)
        self._names: list[str] = list(world["colours"])
        self._palette = np.array([world["colours"][name] for name in self._names], np.float64)
        shapes: dict[str, Any] = world["shapes"]
        self._templates = {name: _template(parts) for name, parts in shapes.items()}

    def look(self, pixels: Pixels) -> Sight:
        """Judge one picture, (height, width, 3)."""
        smooth = np.asarray(Image.fromarray(pixels).filter(ImageFilter.MedianFilter(3)))
        border = np.ones(smooth.shape[:2], np.bool_)
        border[BORDER:-BORDER, BORDER:-BORDER] = False
        ground = np.median(smooth[border], axis=0)
        mask = np.linalg.norm(smooth - ground, axis=2) > CONTRAST
        mask[border] = False
        if mask.sum() < 30:
            return Sight(self._colour(ground), None, None)
        return Sight(self._colour(ground), self.colour_under(smooth, mask), self._shape(mask))

    def colour_under(self, pixels: Pixels, mask: Mask) -> str:
        """What colour a part of a picture has, its edges left out where it is large enough."""
        inner = _eroded(mask)
        return self._colour(np.median(pixels[inner if inner.sum() > 10 else mask], axis=0))

    def overlap(self, pixels: Pixels, mask: Mask) -> float:
        """How well what stands out from the background lies under a mask: intersection over union."""
        ground = np.median(pixels[~mask], axis=0)
        standing = np.linalg.norm(pixels - ground, axis=2) > CONTRAST
        return float((standing & mask).sum() / max(1, (standing | mask).sum()))

    def _colour(self, rgb: npt.NDArray[np.float64]) -> str:
        nearest = int(np.linalg.norm(self._palette - rgb, axis=1).argmin())
        return self._names[nearest]

    def _shape(self, mask: Mask) -> str:
        seen = _normalised(mask)
        return min(self._templates, key=lambda name: float(np.abs(self._templates[name] - seen).mean()))


def _eroded(mask: Mask) -> Mask:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MinFilter(5))) > 0


def _normalised(mask: Mask) -> npt.NDArray[np.float32]:
    """The mask's bounding box, stretched to the side of a template; specks at the edges of the box do not count."""
    rows, columns = (np.flatnonzero(mask.sum(axis=axis) > 1) for axis in (1, 0))
    if len(rows) == 0 or len(columns) == 0:
        return np.zeros((TEMPLATE_SIDE, TEMPLATE_SIDE), np.float32)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(box.astype(np.uint8) * 255)
    resized = image.resize((TEMPLATE_SIDE, TEMPLATE_SIDE), Image.Resampling.BOX)
    return np.asarray(resized, np.float32) / 255


def _template(parts: dict[str, list[list[float]]]) -> npt.NDArray[np.float32]:
    image = Image.new("L", (256, 256))
    pen = ImageDraw.Draw(image)
    for part, ink in (("outline", 255), ("hole", 0)):
        if part in parts:
            pen.polygon([(128 + 110 * x, 128 + 110 * y) for x, y in parts[part]], fill=ink)
    return _normalised(np.asarray(image) > 127)
