"""What the requests of a load begin with: drawn pictures and masks, as each task takes them."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from bench.judging.scenes import CANVAS, Painter, box_mask, png
from server.fields import Value

TaskName: TypeAlias = Literal["txt2img", "img2img", "inpainting", "outpainting", "depth", "upscaling", "hires"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
# Tasks that a checkpoint which only draws from words cannot do.
NEEDS_MODEL: tuple[TaskName, ...] = ("depth", "upscaling")
# Of these the server must draw just that size; a picture of the others is resized to one that it has.
NEEDS_SIZE: tuple[TaskName, ...] = ("outpainting", "hires")
# Every size is a multiple of this.
SIDE_STEP = 64
UPSCALED = 4


@dataclass(frozen=True, slots=True)
class Task:
    """What a request is for.

    Attributes:
        model: the checkpoint by its name in the server; the first one when empty.
        fields: of the request, which go before those that the task chooses.
    """

    name: TaskName = "txt2img"
    model: str = ""
    fields: Mapping[str, Value] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """To tell it from others."""
        more = [f"{name}={value!r}" for name, value in self.fields.items()]
        return " ".join([self.name, *([f"on {self.model}"] if self.model else []), *more])


def task_fields(task: Task, height: int, width: int, draw: random.Random) -> dict[str, Value]:
    """What a request for a picture of this size needs besides the fields that every request has.

    Args:
        height, width: in pixels; 0 for a size that the server chooses.
    """
    scene = draw.randrange(len(SCENES))
    height, width = height or CANVAS, width or CANVAS
    return {**({"model": task.model} if task.model else {}), **_begun(task.name, height, width, scene), **task.fields}


def _begun(name: TaskName, height: int, width: int, scene: int) -> dict[str, Value]:
    match name:
        case "txt2img":
            return {}
        case "img2img":
            return {"init_image": picture(scene, height, width), "strength": 0.8}
        case "inpainting":
            return {"init_image": picture(scene, height, width), "mask_image": _mask(height, width)}
        case "depth":
            return {"init_image": picture(scene, height, width), "strength": 1.0}
        case "upscaling":
            return {"init_image": picture(scene, height // UPSCALED, width // UPSCALED)}
        case "outpainting":
            down, across = height // 4, width // 4
            margins: dict[str, Value] = {"extend_top": down, "extend_bottom": down}
            margins |= {"extend_left": across, "extend_right": across}
            return {"init_image": picture(scene, height - 2 * down, width - 2 * across), **margins}
        case "hires":
            return {"hires_height": _larger(height), "hires_width": _larger(width), "hires_strength": 0.6}


def _larger(side: int) -> int:
    """One and a half times as long."""
    return 3 * side // 2 // SIDE_STEP * SIDE_STEP


@functools.lru_cache(maxsize=256)
def picture(scene: int, height: int, width: int) -> bytes:
    """A PNG of one of the scenes; its middle where it is not square."""
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return png(_painter().draw(SCENES[scene], side)[top : top + height, left : left + width])


@functools.lru_cache(maxsize=64)
def _mask(height: int, width: int) -> bytes:
    side = max(height, width)
    box = [side // 4, side // 4, 3 * side // 4, 3 * side // 4]
    top, left = (side - height) // 2, (side - width) // 2
    return png(box_mask(box, side)[top : top + height, left : left + width])


@functools.cache
def _painter() -> Painter:
    return Painter()


def _scene(background: str, colour: str, shape: str) -> dict[str, Any]:
    thing = {"shape": shape, "colour": colour, "x": CANVAS / 2, "y": CANVAS / 2, "radius": CANVAS / 4}
    return {"background": background, "things": [thing]}


SCENES = (
    _scene("blue", "red", "circle"),
    _scene("white", "green", "star"),
    _scene("yellow", "purple", "heart"),
    _scene("black", "orange", "square"),
)
