"""Scenes of the embedded checkpoint's world, drawn from its data: what the pictures of the tasks begin with."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from bench.judging.judge import Mask, Pixels, read_world

CANVAS = 128
SUPERSAMPLING = 3


class Painter:
    """Draws scenes as the program does that drew what the checkpoint was trained on."""

    def __init__(self) -> None:
        world = read_world()
        self._colours: dict[str, list[int]] = world["colours"]
        self._shapes: dict[str, dict[str, list[list[float]]]] = world["shapes"]

    def draw(self, scene: Mapping[str, Any], pixels: int = CANVAS) -> Pixels:
        """(pixels, pixels, 3); a scene has a `background` and `things`, in pixels of a 128-pixel canvas."""
        side = SUPERSAMPLING * pixels
        image = Image.new("RGB", (side, side), tuple(self._colours[scene["background"]]))
        for thing in scene["things"]:
            image.paste(tuple(self._colours[thing["colour"]]), mask=self._silhouette(thing, side))
        return np.array(image.resize((pixels, pixels), Image.Resampling.BOX))

    def silhouette(self, thing: Mapping[str, Any], pixels: int = CANVAS) -> Mask:
        """Where an object is, (pixels, pixels)."""
        return np.asarray(self._silhouette(thing, pixels))

    def _silhouette(self, thing: Mapping[str, Any], side: int) -> Image.Image:
        scale = side / CANVAS
        mask = Image.new("1", (side, side))
        pen = ImageDraw.Draw(mask)
        for part, ink in (("outline", 1), ("hole", 0)):
            points = self._shapes[thing["shape"]].get(part, ())
            at = [((thing["x"] + x * thing["radius"]) * scale, (thing["y"] + y * thing["radius"]) * scale)
                  for x, y in points]  # fmt: skip
            if at:
                pen.polygon(at, fill=ink)
        return mask


def png(pixels: Pixels) -> bytes:
    """As a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def box_mask(box: list[int], pixels: int = CANVAS) -> Pixels:
    """(pixels, pixels), white in a box (left, top, right, bottom)."""
    mask = np.zeros((pixels, pixels), np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 255
    return mask
