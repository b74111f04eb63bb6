"""The judge must see what was drawn before it may judge what was generated."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bench.judging.judge import Judge
from export.embedded.world import COLOURS, SHAPES, Scene, Thing, draw, sample_scene


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.mark.parametrize("pixels", [128, 192])
def test_judge_is_right_on_98_percent_of_drawn_pictures(judge: Judge, pixels: int) -> None:
    rng = random.Random(pixels)
    scenes = [scene for _ in range(500) if len((scene := sample_scene(rng)).things) == 1]
    assert len(scenes) > 250
    right = {"colour": 0, "background": 0, "shape": 0}
    for scene in scenes:
        sight, thing = judge.look(draw(scene, pixels)), scene.things[0]
        right["colour"] += sight.colour == thing.colour
        right["background"] += sight.background == scene.background
        right["shape"] += sight.shape == thing.shape
    assert min(right.values()) / len(scenes) >= 0.98, right


@pytest.mark.parametrize("shape", SHAPES)
def test_judge_survives_noise(judge: Judge, shape: str) -> None:
    picture = draw(Scene("blue", (Thing(shape, "yellow", 64, 64, 30),)))
    noise = np.random.default_rng(0).normal(0, 8, picture.shape)
    sight = judge.look(np.clip(picture + noise, 0, 255).astype(np.uint8))
    assert (sight.colour, sight.background, sight.shape) == ("yellow", "blue", shape)


def test_judge_tells_wrong_colours(judge: Judge) -> None:
    seen = {name: judge.look(draw(Scene("black", (Thing("circle", name, 64, 64, 30),)))).colour for name in COLOURS}
    del seen["black"]
    assert all(name == colour for name, colour in seen.items())


def test_empty_picture_shows_nothing(judge: Judge) -> None:
    sight = judge.look(draw(Scene("pink", ())))
    assert (sight.background, sight.colour, sight.shape) == ("pink", None, None)
