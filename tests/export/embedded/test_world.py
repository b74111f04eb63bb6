"""The drawn world: what is kept from training, what captions say, what pictures show."""

import itertools
import json
import random
import re

import numpy as np
import pytest

from export.embedded.world import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    WORLD_FILE,
    Scene,
    Thing,
    caption,
    draw,
    held_out_captions,
    is_held_out,
    sample_scene,
    training_scene,
)

TRIPLES = [t for t in itertools.product(SHAPES, COLOURS, COLOURS) if t[1] != t[2]]
SEEN = [triple for triple in TRIPLES if not is_held_out(*triple)]
CENTRE = 64.0


def scenes(count: int, seed: int = 1) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng) for _ in range(count)]


def one_thing(shape: str = "square", colour: str = "red", background: str = "blue") -> Scene:
    return Scene(background, (Thing(shape, colour, CENTRE, CENTRE, 31.0),))


def test_about_a_ninth_of_the_triples_is_held_out() -> None:
    assert 1 / 10 < 1 - len(SEEN) / len(TRIPLES) < 1 / 8


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)], ids=["shape+colour", "shape+background", "colours"])
def test_every_pair_of_words_is_still_trained_on(pair: tuple[int, int]) -> None:
    assert {tuple(t[i] for i in pair) for t in SEEN} == {tuple(t[i] for i in pair) for t in TRIPLES}


def test_training_scenes_are_never_held_out() -> None:
    rng = random.Random(3)
    drawn = [training_scene(rng) for _ in range(3000)]
    alone = [(s.things[0].shape, s.things[0].colour, s.background) for s in drawn if len(s.things) == 1]
    assert len(alone) > 1500
    assert not any(is_held_out(*triple) for triple in alone)
    assert any(scene.held_out for scene in scenes(500))


def test_two_objects_are_never_held_out() -> None:
    shape, colour, background = next(t for t in TRIPLES if is_held_out(*t))
    scene = one_thing(shape, colour, background)
    assert scene.held_out
    assert not Scene(background, scene.things * 2, relation="above").held_out


def test_scenes_and_captions_follow_from_the_seed() -> None:
    def told(seed: int) -> list[tuple[Scene, str]]:
        rng = random.Random(seed)
        drawn = [sample_scene(rng) for _ in range(50)]
        return [(scene, caption(scene, rng)) for scene in drawn]

    assert told(4) == told(4)
    assert told(4) != told(5)


def test_things_differ_from_their_background() -> None:
    assert all(thing.colour != scene.background for scene in scenes(1000) for thing in scene.things)


def test_captions_say_everything_that_is_drawn_and_nothing_else() -> None:
    rng = random.Random(6)
    for scene in scenes(2000):
        text = caption(scene, rng)
        names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
        told = re.findall(rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})", text)
        assert told == names, text
        assert re.findall(r"(\w+) background", text) == [scene.background], text
        assert [size for size in SIZES if size in text.split()] == ([scene.size] if scene.size else []), text
        assert [p for p in POSITIONS if p in text] == ([scene.position] if scene.position else []), text
        assert [r for r in ("left of", "above") if r in text] == ([scene.relation] if scene.relation else []), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def test_sizes_and_places_are_as_told() -> None:
    for scene in scenes(2000):
        first, last = scene.things[0], scene.things[-1]
        if scene.size:
            assert first.radius == pytest.approx(SIZES[scene.size], rel=0.051)
        if scene.position:
            assert [first.x, first.y] == pytest.approx(POSITIONS[scene.position], abs=3)
        if scene.relation:
            along, across = (first.x, last.x), (first.y, last.y)
            if scene.relation == "above":
                along, across = across, along
            assert along[1] - along[0] > 40
            assert abs(across[1] - across[0]) <= 6


@pytest.mark.parametrize("pixels", [128, 192])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "hole" not in SHAPES[shape]])
def test_pictures_have_the_objects_colour_in_the_centre_and_the_backgrounds_in_the_corners(
    shape: str, pixels: int
) -> None:
    picture = draw(one_thing(shape, "orange", "purple"), pixels)
    assert (picture.shape, picture.dtype.name) == ((pixels, pixels, 3), "uint8")
    assert picture[pixels // 2, pixels // 2].tolist() == COLOURS["orange"]
    for corner in itertools.product((0, -1), (0, -1)):
        assert picture[corner].tolist() == COLOURS["purple"]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "hole" in SHAPES[shape]])
def test_the_background_shows_through_a_hole(shape: str) -> None:
    picture = draw(one_thing(shape, "green", "pink"))
    reach = [max(x for x, _ in SHAPES[shape][part]) for part in ("hole", "outline")]
    band = round(CENTRE + 31 * sum(reach) / 2)
    assert picture[64, 64].tolist() == COLOURS["pink"]
    assert picture[64, band].tolist() == COLOURS["green"]


def test_edges_are_smooth() -> None:
    red, blue = np.array(COLOURS["red"]), np.array(COLOURS["blue"])
    colours = {tuple(c) for c in draw(one_thing("circle")).reshape(-1, 3).tolist()}
    between = colours - {tuple(red), tuple(blue)}
    assert len(between) > 3
    low, high = np.minimum(red, blue), np.maximum(red, blue)
    assert all((low <= c).all() and (c <= high).all() for c in map(np.array, between))


def test_later_objects_lie_in_front() -> None:
    things = (Thing("square", "red", 60, 64, 24), Thing("square", "white", 70, 64, 24))
    picture = draw(Scene("black", things))
    assert picture[64, 65].tolist() == COLOURS["white"]
    assert picture[64, 42].tolist() == COLOURS["red"]


def test_rows_are_y_and_columns_are_x() -> None:
    picture = draw(Scene("black", (Thing("circle", "white", 92, 36, 18),)))
    assert picture[36, 92].tolist() == COLOURS["white"]
    assert picture[92, 36].tolist() == COLOURS["black"]


def test_held_out_captions_are_distinct_and_held_out() -> None:
    asked = held_out_captions(60)
    assert len({entry["caption"] for entry in asked}) == len(asked) == 60
    for entry in asked:
        assert is_held_out(entry["shape"], entry["colour"], entry["background"])
        assert f"{entry['colour']} {entry['shape']}" in entry["caption"]
        assert f"{entry['background']} background" in entry["caption"]


def test_the_judges_captions_are_the_worlds() -> None:
    kept = json.loads(WORLD_FILE.with_name("held_out.json").read_text(encoding="utf-8"))
    assert kept == held_out_captions(len(kept))
