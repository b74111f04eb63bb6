"""What the embedded checkpoint and its variants are asked to draw, task by task, and how each picture is judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from bench.judging.judge import WORLD_FOLDER, Judge, Mask, Pixels
from bench.judging.scenes import CANVAS, Painter, box_mask, png
from engines.verify import psnr
from server.fields import Value

ASPECTS = ("colour", "background", "shape")
# By how many dB an enlarged picture must be nearer to the truth than a bicubic enlargement.
BETTER_DB = 2.0
# What a UNet that was told to leave it alone may change of the rest of a picture: about what the VAE does to it.
ALONE_DB = 28.0
# Of an object's silhouette and what is seen there.
OVERLAP = 0.75
SIDE_EXTENDED, EXTENDED = 32, 192

Scores: TypeAlias = dict[str, float]
Case: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """A request, what its picture should be called, and what is found in the picture: 1 where right, 0 where not."""

    fields: dict[str, Value]
    judge: Callable[[Pixels], Scores]


def held_out(folder: Path = WORLD_FOLDER) -> list[dict[str, str]]:
    """Captions with the colour, background and shape that must be seen."""
    found: list[dict[str, str]] = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    return found


def task_cases(task: str, folder: Path = WORLD_FOLDER) -> list[Case]:
    """The cases of a variant's task; see `export.embedded.tasks`."""
    found: dict[str, list[Case]] = json.loads((folder / "held_out_tasks.json").read_text(encoding="utf-8"))
    return found[task]


def seen(judge: Judge, asked: Mapping[str, str], picture: Pixels) -> Scores:
    """The aspects of a picture with one object."""
    sight = judge.look(picture)
    return {aspect: float(getattr(sight, aspect) == asked[aspect]) for aspect in ASPECTS}


def text_to_image(judge: Judge, painter: Painter, **more: Value) -> list[Trial]:
    """Captions that were never trained on."""
    return [Trial({"prompt": case["caption"], **more}, partial(seen, judge, case)) for case in held_out()]


def hires(judge: Judge, painter: Painter) -> list[Trial]:
    """The same, drawn at 128 pixels and then at 192."""
    return text_to_image(judge, painter, height=CANVAS, hires_height=EXTENDED)


def image_to_image(judge: Judge, painter: Painter) -> list[Trial]:
    """A scene in one set of colours, asked for in another."""
    cases = [case for case in task_cases("depth") if len(case["asked"]) == 1]
    return [
        Trial(
            {"prompt": case["prompt"], "init_image": png(painter.draw(case["scene"])), "strength": 0.9},
            partial(seen, judge, case["asked"][0]),
        )
        for case in cases
    ]


def _inpainting(judge: Judge, painter: Painter, model: str) -> list[Trial]:
    trials = []
    for case in task_cases("inpainting"):
        scene, mask = painter.draw(case["scene"]), box_mask(case["box"])
        # Pixels are not put back, so that it shows whether the networks leave them alone.
        fields = {"prompt": case["prompt"], "init_image": png(scene), "mask_image": png(mask), "mask_blur": 0}
        found = partial(_repainted, judge, case, scene, mask == 0)
        trials.append(Trial({**fields, "keep_unmasked": 0, "model": model}, found))
    return trials


def inpainting(judge: Judge, painter: Painter) -> list[Trial]:
    """An object in a box, by the UNet that takes a mask."""
    return _inpainting(judge, painter, "inpainting")


def inpainting_unmasked(judge: Judge, painter: Painter) -> list[Trial]:
    """The same by the UNet that takes none: the rest is put back after every call."""
    return _inpainting(judge, painter, "")


def _repainted(judge: Judge, case: Case, scene: Pixels, outside: Mask, picture: Pixels) -> Scores:
    left, top, right, bottom = case["box"]
    inside = seen(judge, case["asked"], picture[top:bottom, left:right])
    decibels = psnr(picture[outside], scene[outside])
    return {**inside, "rest_kept": float(decibels >= ALONE_DB), "rest_psnr_db": decibels}


def outpainting(judge: Judge, painter: Painter) -> list[Trial]:
    """32 more pixels on each side of a picture with one object, which must go on as it was."""
    trials = []
    for case in task_cases("upscaling"):
        if len(case["scene"]["things"]) > 1:
            continue
        thing, scene = case["scene"]["things"][0], painter.draw(case["scene"])
        sides: dict[str, Value] = {f"extend_{side}": SIDE_EXTENDED for side in ("left", "right", "top", "bottom")}
        asked = {"colour": thing["colour"], "shape": thing["shape"], "background": case["scene"]["background"]}
        fields: dict[str, Value] = {"prompt": case["prompt"], "init_image": png(scene), "model": "inpainting", **sides}
        trials.append(Trial(fields, partial(_extended, judge, asked, scene)))
    return trials


def _extended(judge: Judge, asked: Mapping[str, str], scene: Pixels, picture: Pixels) -> Scores:
    feather = 8
    inner = slice(SIDE_EXTENDED + feather, EXTENDED - SIDE_EXTENDED - feather)
    kept = np.array_equal(picture[inner, inner], scene[feather:-feather, feather:-feather])
    return {**seen(judge, asked, picture), "rest_kept": float(kept)}


def depth(judge: Judge, painter: Painter) -> list[Trial]:
    """The layout of a scene in other colours."""
    trials = []
    for case in task_cases("depth"):
        fields: dict[str, Value] = {"prompt": case["prompt"], "init_image": png(painter.draw(case["scene"]))}
        shapes = [painter.silhouette(thing) for thing in case["scene"]["things"]]
        # Of what lies behind another object only the part that shows.
        shown = [mask & ~np.any([*shapes[i + 1 :], np.zeros_like(mask)], axis=0) for i, mask in enumerate(shapes)]
        judged = partial(_laid_out, judge, case["asked"], shown)
        trials.append(Trial({**fields, "model": "depth", "strength": 1.0}, judged))
    return trials


def _laid_out(judge: Judge, asked: Sequence[Mapping[str, str]], shapes: Sequence[Mask], picture: Pixels) -> Scores:
    colours = [judge.colour_under(picture, mask) == one["colour"] for mask, one in zip(shapes, asked, strict=True)]
    ground = judge.colour_under(picture, ~np.any(shapes, axis=0))
    overlap = judge.overlap(picture, np.any(shapes, axis=0))
    return {
        "colour": float(all(colours)),
        "background": float(ground == asked[0]["background"]),
        "layout": float(overlap >= OVERLAP),
        "overlap": overlap,
    }


def upscaling(judge: Judge, painter: Painter) -> list[Trial]:
    """Pictures reduced to a quarter, and enlarged again."""
    trials = []
    for case in task_cases("upscaling"):
        truth = painter.draw(case["scene"], case["pixels"])
        small = Image.fromarray(truth).reduce(4)
        bicubic = np.asarray(small.resize((case["pixels"], case["pixels"]), Image.Resampling.BICUBIC))
        fields: dict[str, Value] = {"prompt": case["prompt"], "init_image": png(np.asarray(small)), "model": "upscaler"}
        judged = partial(_enlarged, truth, psnr(bicubic, truth))
        trials.append(Trial({**fields, "guidance_scale": 1.0, "noise_level": 0}, judged))
    return trials


def _enlarged(truth: Pixels, bicubic: float, picture: Pixels) -> Scores:
    decibels = psnr(picture, truth)
    return {"better": float(decibels >= bicubic + BETTER_DB), "psnr_db": decibels, "gained_db": decibels - bicubic}


TASKS: dict[str, Callable[[Judge, Painter], list[Trial]]] = {
    "txt2img": text_to_image,
    "img2img": image_to_image,
    "inpainting": inpainting,
    "inpainting_4ch": inpainting_unmasked,
    "outpainting": outpainting,
    "depth": depth,
    "upscaling": upscaling,
    "hires": hires,
}
