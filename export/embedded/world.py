"""The drawn world of the embedded checkpoint: scenes of coloured shapes, their pictures and their captions.

Colours, outlines, sizes and positions are data in `world.json`, which the judge in `bench` reads too.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

WORLD_FILE = Path(__file__).with_name("world.json")
WORLD = json.loads(WORLD_FILE.read_text())
COLOURS: dict[str, list[int]] = WORLD["colours"]
SHAPES: dict[str, dict[str, list[list[float]]]] = WORLD["shapes"]
SIZES: dict[str, float] = WORLD["sizes"]
POSITIONS: dict[str, list[float]] = WORLD["positions"]
RELATIONS = {"left of": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}
CANVAS = 128
SUPERSAMPLING = 3
MOST_THINGS = 2


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn object; centre and radius are in pixels of a 128-pixel canvas."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What is drawn and what its caption says. `size` and `position` are None where the caption is silent."""

    background: str
    things: tuple[Thing, ...]
    size: str | None = None
    position: str | None = None
    relation: str | None = None

    @property
    def held_out(self) -> bool:
        """Single objects of these (shape, colour, background) triples are never trained on; the judge asks for them."""
        thing = self.things[0]
        return len(self.things) == 1 and is_held_out(thing.shape, thing.colour, self.background)


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """Every ninth triple, spread so that each shape, colour and background is still seen in others."""
    indices = list(SHAPES).index(shape), list(COLOURS).index(colour), list(COLOURS).index(background)
    return (indices[0] * 2 + indices[1] * 3 + indices[2] * 5) % 9 == 0


def sample_scene(rng: random.Random) -> Scene:
    """A random scene: six in ten have one object, the others two side by side or one above the other."""
    background, first, second = rng.sample(list(COLOURS), 3)
    if rng.random() < 0.6:
        size = rng.choice(["large", "small", None])
        position = rng.choice([*POSITIONS, None])
        radius = SIZES[size or "large"]
        thing = _thing(rng, first, position or "in the middle", radius)
        return Scene(background, (thing,), size=size, position=position)
    relation = rng.choice(list(RELATIONS))
    places = RELATIONS[relation]
    if rng.random() < 0.2:
        second = first
    things = tuple(_thing(rng, c, p, SIZES["paired"]) for c, p in zip((first, second), places, strict=True))
    return Scene(background, things, relation=relation)


def _thing(rng: random.Random, colour: str, position: str, radius: float) -> Thing:
    x, y = (c + rng.uniform(-3, 3) for c in POSITIONS[position])
    return Thing(rng.choice(list(SHAPES)), colour, x, y, radius * rng.uniform(0.95, 1.05))


def training_scene(rng: random.Random) -> Scene:
    """A random scene that is not held out."""
    while (scene := sample_scene(rng)).held_out:
        pass
    return scene


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def caption(scene: Scene, rng: random.Random) -> str:
    """One of several ways to say the scene."""
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    if scene.size is not None:
        names[0] = f"{scene.size} {names[0]}"
    if scene.relation is not None:
        joint = rng.choice(["left of", "to the left of"]) if scene.relation == "left of" else scene.relation
        subject = f"{_article(names[0])} {joint} {_article(names[1])}"
    else:
        subject = _article(names[0]) + (f" {scene.position}" if scene.position else "")
    ground = scene.background
    return rng.choice(
        [
            f"{subject} on {_article(ground)} background",
            f"{subject} on {_article(ground)} background",
            f"{subject}, {ground} background",
            f"a picture of {subject} on {_article(ground)} background",
            f"{_article(ground)} background with {subject}",
        ]
    )


def draw(scene: Scene, pixels: int = CANVAS) -> npt.NDArray[np.uint8]:
    """The picture, anti-aliased: (pixels, pixels, 3) uint8. Later objects lie in front of earlier ones."""
    side = SUPERSAMPLING * pixels
    image = Image.new("RGB", (side, side), tuple(COLOURS[scene.background]))
    for thing in scene.things:
        image.paste(tuple(COLOURS[thing.colour]), mask=silhouette(thing, side))
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.BOX))


def draw_depth(scene: Scene, pixels: int) -> npt.NDArray[np.uint8]:
    """The inverse depth of the picture, anti-aliased: (pixels, pixels) uint8, more is nearer, as MiDaS has it.

    Everything is flat: the background is at 0, an only or first object halfway, and what lies in front of it at 255.
    """
    side = SUPERSAMPLING * pixels
    image = Image.new("L", (side, side))
    for index, thing in enumerate(scene.things, start=1):
        image.paste(round(255 * index / MOST_THINGS), mask=silhouette(thing, side))
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.BOX))


def silhouette(thing: Thing, side: int) -> Image.Image:
    """The object on a canvas of side x side, one bit per pixel, its hole left out."""
    scale = side / CANVAS
    mask = Image.new("1", (side, side))
    pen = ImageDraw.Draw(mask)
    for part, ink in (("outline", 1), ("hole", 0)):
        points = SHAPES[thing.shape].get(part)
        if points:
            pen.polygon(
                [((thing.x + x * thing.radius) * scale, (thing.y + y * thing.radius) * scale) for x, y in points],
                fill=ink,
            )
    return mask


def held_out_captions(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Captions of held-out scenes, each once, with what must be seen; `held_out.json` keeps them for the judge."""
    rng = random.Random(seed)
    asked: dict[str, dict[str, str]] = {}
    while len(asked) < count:
        scene = sample_scene(rng)
        if scene.held_out:
            text = caption(scene, rng)
            thing = scene.things[0]
            seen = {"colour": thing.colour, "shape": thing.shape, "background": scene.background}
            asked.setdefault(text, {"caption": text, **seen})
    return list(asked.values())
