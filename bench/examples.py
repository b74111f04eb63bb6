"""What `make demo` shows: prompts, and an example or more of every task."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from bench.judging.judge import Pixels
from bench.judging.scenes import Painter, box_mask, png
from server.fields import Value

GALLERY: tuple[dict[str, Value], ...] = (
    {"prompt": "a red circle on a blue background", "sampler": "dpmpp_2m", "num_inference_steps": 20},
    {"prompt": "a large yellow star on a purple background", "sampler": "euler", "num_inference_steps": 30},
    {"prompt": "a white heart on a red background", "sampler": "ddim", "num_inference_steps": 25},
    {"prompt": "a small green square on the left on an orange background", "sampler": "euler_ancestral"},
    {"prompt": "a cyan ring above a pink triangle on a black background", "sampler": "dpmpp_2m"},
    {"prompt": "a black diamond left of an orange cross on a white background", "schedule": "karras"},
    {"prompt": "a picture of a pink heart on a cyan background", "sampler": "euler", "schedule": "karras"},
    {"prompt": "a purple cross at the top on a yellow background", "guidance_scale": 3.0},
    {"prompt": "an orange star on a green background", "height": 192, "width": 192},
    {"prompt": "a blue triangle above a yellow circle on a pink background", "height": 192, "width": 192},
)
SCENE = {
    "background": "blue",
    "things": [{"shape": "circle", "colour": "red", "x": 64.0, "y": 64.0, "radius": 32.0}],
}
BOX = [26, 26, 102, 102]


@dataclass(frozen=True, slots=True)
class Example:
    """A request of a task, and what it begins with, as it is shown."""

    task: str
    fields: dict[str, Value]
    shown: dict[str, Pixels] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        return str(self.fields["prompt"])


def task_examples(loaded: Collection[str]) -> list[Example]:
    """Examples of the tasks that can be shown, task by task.

    Args:
        loaded: names of the variants beside the default checkpoint.
    """
    scene = Painter().draw(SCENE)
    masked = "inpainting" if "inpainting" in loaded else ""
    found = [*_image_to_image(scene), *_inpainting(scene, ""), *_outpainting(scene, masked)]
    if "inpainting" in loaded:
        found += _inpainting(scene, "inpainting")
    if "depth" in loaded:
        found += _depth(scene)
    if "upscaler" in loaded:
        found += _upscaling()
    return [*found, *_hires()]


def _image_to_image(scene: Pixels) -> list[Example]:
    fields: dict[str, Value] = {"init_image": png(scene), "strength": 0.9}
    prompts = ("a green circle on a yellow background", "a purple star on a cyan background",
               "a white ring on a red background", "a black circle on an orange background")  # fmt: skip
    return [Example("image to image", {**fields, "prompt": prompt}, {"from": scene}) for prompt in prompts]


def _inpainting(scene: Pixels, model: str) -> list[Example]:
    mask = box_mask(BOX)
    fields: dict[str, Value] = {"init_image": png(scene), "mask_image": png(mask), "model": model}
    prompts = ("a green star on a blue background", "a yellow heart on a blue background",
               "a white square on a blue background")  # fmt: skip
    name = "inpainting, 9 channels" if model else "inpainting"
    shown = {"from": scene, "mask": np.dstack([mask] * 3)}
    return [Example(name, {**fields, "prompt": prompt}, shown) for prompt in prompts]


def _outpainting(scene: Pixels, model: str) -> list[Example]:
    fields: dict[str, Value] = {"init_image": png(scene), "model": model, "extend_top": 32, "extend_bottom": 32}
    ways = {
        "a red circle on a blue background": {"extend_left": 32, "extend_right": 32},
        "a red circle on the left on a blue background": {"extend_right": 64},
        "a red circle on the right on a blue background": {"extend_left": 64},
    }
    return [
        Example("outpainting", {**fields, **way, "prompt": prompt}, {"from": scene}) for prompt, way in ways.items()
    ]


def _depth(scene: Pixels) -> list[Example]:
    fields: dict[str, Value] = {"init_image": png(scene), "strength": 1.0, "model": "depth"}
    prompts = ("a yellow circle on a green background", "a black circle on a pink background",
               "a white circle on a purple background")  # fmt: skip
    return [Example("depth to image", {**fields, "prompt": prompt}, {"from": scene}) for prompt in prompts]


def _upscaling() -> list[Example]:
    scene = {**SCENE, "things": [{**SCENE["things"][0], "shape": "star"}]}  # type: ignore[dict-item]
    small = np.asarray(Image.fromarray(Painter().draw(scene)).reduce(4))
    wide = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC))
    fields: dict[str, Value] = {"prompt": "a red star on a blue background", "init_image": png(small)}
    more: dict[str, Value] = {"model": "upscaler", "guidance_scale": 1.0, "noise_level": 0}
    shown = {"from 32x32": small, "bicubic": wide}
    return [Example("upscaling", {**fields, **more}, shown)]


def _hires() -> list[Example]:
    prompts = ("a red circle on a blue background", "a white heart on a red background")
    common: dict[str, Value] = {"height": 128, "hires_height": 192, "hires_strength": 0.6}
    return [Example("hires, 128 to 192", {**common, "prompt": prompt}) for prompt in prompts]
