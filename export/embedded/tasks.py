"""What the variants are judged by: `held_out_tasks.json`, which the judge in `bench` draws and looks at.

By task, a list of cases. Each has a `scene` (what is drawn: the `background` and its `things`, as `world.Scene` has
them, in pixels of a 128-pixel canvas) and a `prompt`. `asked` says what must be seen.

* inpainting: what lies in the `box` (left, top, right, bottom) is painted anew; the asked object must be seen there,
  and all else must stay as it is.
* depth: the scene gives the layout, the prompt other colours; objects must stay where they are, in the asked colours.
* upscaling: the scene drawn with sides of `pixels` is reduced to a quarter and must come back.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from export.embedded.world import CANVAS, COLOURS, SHAPES, Scene, Thing, caption, sample_scene, silhouette

TASKS_FILE = Path(__file__).with_name("held_out_tasks.json")
CASES = 100
MARGIN = 1.25
PIXELS = (128, 192)

Case: TypeAlias = dict[str, Any]


def held_out_tasks(count: int = CASES, seed: int = 0) -> dict[str, list[Case]]:
    """`count` cases of each task."""
    makers: dict[str, Callable[[int, random.Random], Case]] = {
        "inpainting": _inpainting,
        "depth": _depth,
        "upscaling": _upscaling,
    }
    rng = random.Random(seed)
    return {task: [make(index, rng) for index in range(count)] for task, make in makers.items()}


def write_tasks(file: Path = TASKS_FILE) -> None:
    """One case a line."""
    tasks = [
        f' "{task}": [\n' + ",\n".join(f"  {json.dumps(case)}" for case in cases) + "\n ]"
        for task, cases in held_out_tasks().items()
    ]
    file.write_text("{\n" + ",\n".join(tasks) + "\n}\n", encoding="utf-8")


def _inpainting(index: int, rng: random.Random) -> Case:
    """By turns: another object in place of the only one, and a second object beside the first."""
    while True:
        scene = _rounded(sample_scene(rng))
        if len(scene.things) == 2 and index % 2:
            asked, kept = rng.sample(scene.things, 2)
            left, top, right, bottom = box = _box(asked)
            if not np.asarray(silhouette(kept, CANVAS))[top:bottom, left:right].any():
                source = replace(scene, things=(kept,))
                return {**_drawn(source), "prompt": caption(scene, rng), "box": box, "asked": _seen(scene, asked)}
        if scene.held_out and not index % 2:
            thing = scene.things[0]
            shape = rng.choice([name for name in SHAPES if name != thing.shape])
            colour = rng.choice([name for name in COLOURS if name not in (thing.colour, scene.background)])
            source = replace(scene, things=(replace(thing, shape=shape, colour=colour),))
            return {**_drawn(source), "prompt": caption(scene, rng), "box": _box(thing), "asked": _seen(scene, thing)}


def _depth(index: int, rng: random.Random) -> Case:
    """Two of three cases have one object, whose asked colours were never trained on with its shape."""
    while True:
        scene = _rounded(sample_scene(rng))
        background, *colours = rng.sample(list(COLOURS), 3)
        things = tuple(replace(t, colour=c) for t, c in zip(scene.things, colours, strict=False))
        asked = replace(scene, background=background, things=things)
        if (len(things) == 2) if index % 3 == 2 else asked.held_out:
            seen = [_seen(asked, thing) for thing in things]
            return {**_drawn(scene), "prompt": caption(asked, rng), "asked": seen}


def _upscaling(index: int, rng: random.Random) -> Case:
    scene = _rounded(sample_scene(rng))
    return {**_drawn(scene), "prompt": caption(scene, rng), "pixels": PIXELS[index % len(PIXELS)]}


def _rounded(scene: Scene) -> Scene:
    things = (replace(t, x=round(t.x, 1), y=round(t.y, 1), radius=round(t.radius, 1)) for t in scene.things)
    return replace(scene, things=tuple(things))


def _drawn(scene: Scene) -> Case:
    return {"scene": {"background": scene.background, "things": [asdict(thing) for thing in scene.things]}}


def _seen(scene: Scene, thing: Thing) -> dict[str, str]:
    return {"colour": thing.colour, "shape": thing.shape, "background": scene.background}


def _box(thing: Thing) -> list[int]:
    reach = MARGIN * thing.radius
    edges = (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)
    return [min(max(round(edge), 0), CANVAS) for edge in edges]
