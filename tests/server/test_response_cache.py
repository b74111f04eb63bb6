"""server.response_cache: which answers are kept, for whom, and how many."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.fields import Raster
from server.request import Request
from server.response_cache import ResponseCache
from tests.fakes import make_request

WAY: dict[str, Any] = {
    "priority": 5,
    "timeout_ms": 900,
    "progress_interval": 3,
    "preview_interval": 4,
    "partial_result": 1,
    "client_id": "another",
    "request_id": "another",
}
# One change of every other field.
WHAT: dict[str, Any] = {
    "prompt": "a blue circle",
    "negative_prompt": "x",
    "height": 192,
    "width": 192,
    "num_inference_steps": 7,
    "guidance_scale": 3.0,
    "seed": 1,
    "num_images": 2,
    "sampler": "ddim",
    "schedule": "karras",
    "timestep_spacing": "trailing",
    "final_sigma": "sigma_min",
    "rho": 5.0,
    "sigmas": (3.0, 1.0),
    "timesteps": (500.0, 100.0),
    "eta": 0.5,
    "solver_order": 2,
    "guidance_rescale": 0.5,
    "guidance_start": 0.1,
    "guidance_end": 0.9,
    "prompt_syntax": "a1111",
    "clip_skip": 1,
    "noise_source": "philox",
    "subseed": 1,
    "subseed_strength": 0.5,
    "noise_seed_delta": 1,
    "model": "another",
    "init_image": b"a file",
    "strength": 0.5,
    "resize_mode": "crop",
    "mask_image": Raster((2, 2), b"\0\1\2\3"),
    "mask_blur": 0,
    "mask_invert": 1,
    "masked_content": "fill",
    "soft_mask": 1,
    "only_masked": 1,
    "only_masked_padding": 8,
    "keep_unmasked": 0,
    "extend_left": 8,
    "extend_right": 8,
    "extend_top": 8,
    "extend_bottom": 8,
    "extend_fill": "noise",
    "feather": 0,
    "depth_image": Raster((1, 1), b"\0\0\0\0"),
    "depth_invert": 1,
    "noise_level": 50,
    "hires_height": 192,
    "hires_width": 192,
    "hires_strength": 0.5,
    "hires_steps": 7,
    "hires_upscaler": "lanczos",
    "upscale_model": "x4",
    "upscale_steps": 7,
    "upscale_guidance_scale": 3.0,
    "task": "image_to_image",
    "source_height": 64,
    "source_width": 64,
    "output_format": "jpeg",
    "encoding": "base64",
    "stream_images": 1,
}


# Of answers without any.
METADATA = "{}"


def answer(size: int = 10, **metadata: Any) -> tuple[list[bytes], dict[str, Any]]:
    return [b"x" * size], metadata


def test_every_field_is_either_about_the_way_or_about_what_comes_of_it() -> None:
    names = {field.name for field in dataclasses.fields(Request)}
    assert names == WAY.keys() | WHAT.keys()
    assert not WAY.keys() & WHAT.keys()


def test_an_answer_is_given_again_and_says_so() -> None:
    cache, request = ResponseCache(100), make_request()
    assert cache.get(request) is None
    cache.put(request, answer(seeds=[0]))
    for _ in range(2):
        found = cache.get(make_request())
        assert found is not None
        images, metadata = found
        assert images == [b"x" * 10]
        assert (metadata["cached"], metadata["seeds"]) == (True, [0])


@pytest.mark.parametrize("name", WAY)
def test_what_is_about_the_way_only_does_not_matter(name: str) -> None:
    cache = ResponseCache(100)
    cache.put(make_request(), answer())
    cache.put(make_request(seed=2, **{name: WAY[name]}), answer())
    assert cache.get(make_request(**{name: WAY[name]})) is not None
    assert cache.get(make_request(seed=2)) is not None


@pytest.mark.parametrize("name", WHAT)
def test_everything_else_does(name: str) -> None:
    cache, request = ResponseCache(100), make_request()
    other = dataclasses.replace(request, **{name: WHAT[name]})
    assert other != request
    cache.put(request, answer())
    assert cache.get(other) is None


def test_who_asked_first_is_not_told_to_others() -> None:
    cache = ResponseCache(1000)
    first = make_request(client_id="secret", request_id="mine", priority=3)
    request = {"prompt": "a red circle", "client_id": "secret", "request_id": "mine", "priority": 3}
    cache.put(first, answer(request=request))
    found = cache.get(make_request(client_id="another", timeout_ms=5000))
    assert found is not None
    shown = found[1]["request"]
    assert (shown["client_id"], shown["request_id"], shown["priority"]) == ("another", "", 0)
    assert (shown["prompt"], shown["timeout_ms"]) == ("a red circle", 5000)
    again = cache.get(first)
    assert again is not None
    assert again[1]["request"]["client_id"] == "secret"


@pytest.mark.parametrize(
    ("limit", "seeded", "fields", "wanted"),
    [
        (100, True, {}, True),
        (100, False, {}, False),
        (0, True, {}, False),
        (100, True, {"stream_images": 1}, False),
        (100, True, {"num_images": 3, "preview_interval": 2, "partial_result": 1}, True),
    ],
)
def test_only_seeded_answers_in_one_message_are_wanted(
    limit: int, seeded: bool, fields: dict[str, Any], wanted: bool
) -> None:
    assert ResponseCache(limit).wants(make_request(**fields), seeded=seeded) is wanted


def test_an_answer_beyond_the_limit_is_not_kept_and_costs_the_others_nothing() -> None:
    cache = ResponseCache(25)
    cache.put(make_request(seed=1), answer(20))
    cache.put(make_request(seed=2), answer(26))
    assert cache.get(make_request(seed=1)) is not None
    assert cache.get(make_request(seed=2)) is None


@pytest.mark.parametrize("picture", [b"x" * 100, Raster((10, 10), b"x" * 100)], ids=["file", "array"])
def test_pictures_that_came_are_told_apart_and_count_too(picture: bytes | Raster) -> None:
    request = dataclasses.replace(make_request(), init_image=picture)
    other = dataclasses.replace(make_request(), init_image=b"y" * 100)
    small, large = ResponseCache(100), ResponseCache(120)
    for cache in (small, large):
        cache.put(request, answer())
        assert cache.get(other) is None
    assert small.get(request) is None
    assert large.get(request) is not None


def test_metadata_counts_too() -> None:
    cache = ResponseCache(100)
    cache.put(make_request(), answer(50, tokens="x" * 100))
    assert cache.get(make_request()) is None
    cache.put(make_request(), answer(50, tokens="x" * 20))
    assert cache.get(make_request()) is not None


def test_an_answer_that_is_asked_for_again_is_kept_longer() -> None:
    cache = ResponseCache(30)
    first, second, third = (make_request(seed=seed) for seed in range(3))
    cache.put(first, answer())
    cache.put(second, answer())
    cache.get(first)
    cache.put(third, answer(15))
    assert [cache.get(request) is not None for request in (first, second, third)] == [True, False, True]


REQUESTS = [make_request(seed=seed) for seed in range(5)]
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(10, 40)), max_size=40)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(20, 100), STEPS)
def test_the_answers_asked_for_last_are_kept_up_to_so_many_bytes(
    limit: int, steps: list[tuple[bool, int, int]]
) -> None:
    cache = ResponseCache(limit)
    # The least recently used first.
    kept: list[tuple[int, int]] = []
    for puts, number, size in steps:
        known = next((entry for entry in kept if entry[0] == number), None)
        if puts:
            cache.put(REQUESTS[number], answer(size))
            size += len(METADATA)
            if known is None and size <= limit:
                kept.append((number, size))
            while sum(entry[1] for entry in kept) > limit:
                kept.pop(0)
            continue
        found = cache.get(REQUESTS[number])
        assert (found is None) == (known is None)
        if known is not None and found is not None:
            assert len(found[0][0]) + len(METADATA) == known[1]
            kept.remove(known)
            kept.append(known)
    assert cache._bytes == sum(size for _, size in kept) <= limit
