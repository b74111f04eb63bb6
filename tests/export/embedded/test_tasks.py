"""The cases that the variants are judged by."""

import itertools
import json

import numpy as np

from export.embedded.tasks import PIXELS, TASKS_FILE, Case, held_out_tasks
from export.embedded.world import CANVAS, Scene, Thing, is_held_out, silhouette

TASKS = held_out_tasks(30, seed=1)


def drawn(case: Case) -> Scene:
    return Scene(case["scene"]["background"], tuple(Thing(**thing) for thing in case["scene"]["things"]))


def triple(seen: dict[str, str]) -> tuple[str, str, str]:
    return seen["shape"], seen["colour"], seen["background"]


def test_the_judges_cases_are_those_of_the_program() -> None:
    assert json.loads(TASKS_FILE.read_text(encoding="utf-8")) == held_out_tasks()


def test_cases_follow_from_the_seed() -> None:
    assert held_out_tasks(4, seed=1) == held_out_tasks(4, seed=1)
    assert held_out_tasks(4, seed=1) != held_out_tasks(4, seed=2)


def test_an_inpainted_object_replaces_the_only_one_or_comes_beside_it() -> None:
    for index, case in enumerate(TASKS["inpainting"]):
        (thing,) = drawn(case).things
        asked = case["asked"]
        assert asked["background"] == case["scene"]["background"]
        assert f"{asked['colour']} {asked['shape']}" in case["prompt"]
        left, top, right, bottom = case["box"]
        assert 0 <= left < right <= CANVAS
        assert 0 <= top < bottom <= CANVAS
        inside = np.asarray(silhouette(thing, CANVAS))[top:bottom, left:right].sum()
        if index % 2:
            assert inside == 0
            assert f"{thing.colour} {thing.shape}" in case["prompt"]
        else:
            assert inside == np.asarray(silhouette(thing, CANVAS)).sum()
            assert is_held_out(*triple(asked))
            assert (asked["shape"] != thing.shape, asked["colour"] != thing.colour) == (True, True)


def test_depth_keeps_shapes_and_asks_for_other_colours() -> None:
    for index, case in enumerate(TASKS["depth"]):
        things = drawn(case).things
        assert [thing.shape for thing in things] == [seen["shape"] for seen in case["asked"]]
        assert len(things) == (2 if index % 3 == 2 else 1)
        for seen in case["asked"]:
            assert f"{seen['colour']} {seen['shape']}" in case["prompt"]
            assert f"{seen['background']} background" in case["prompt"]
            assert seen["colour"] != seen["background"]
        if len(things) == 1:
            assert is_held_out(*triple(case["asked"][0]))


def test_upscaled_pictures_have_both_sizes() -> None:
    assert [case["pixels"] for case in TASKS["upscaling"][:4]] == [*PIXELS, *PIXELS]


def test_no_prompt_is_asked_twice_of_one_scene() -> None:
    for cases in TASKS.values():
        told = [json.dumps(case["scene"]) + case["prompt"] for case in cases]
        assert all(a != b for a, b in itertools.combinations(told, 2))
