"""server.request on whatever may come: a request that can be sent again, or a refusal."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.attachments import Picture
from server.errors import InvalidRequest
from server.fields import ARRAY_OF, FIELD_BY_NAME, FIELDS, Field, Raster
from server.request import Limits, Request

MAX_SEED = 2**63 - 1
JUNK = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.lists(st.none())),
    *(st.binary(max_size=9), st.text(st.characters(), max_size=9)),
)
PUT_TOGETHER = [field for field in FIELDS if field.name != "prompt"]


def plausible(field: Field) -> st.SearchStrategy[list[Any]]:
    """Values in the field's bounds, or labels that it knows."""
    if field.picture:
        return st.sampled_from([[b"a file"], [b"another"]])
    if field.dims:
        return st.sampled_from([[Raster((384, 384), b"pixels")], [Raster((448, 512), b"pixels")]])
    if field.datatype == "STRING":
        labels = field.choices + (("Euler a", "DPM++ 2M Karras", "PLMS") if field.name == "sampler" else ())
        return st.lists(st.sampled_from(labels) if labels else st.text(max_size=30), min_size=1, max_size=1)
    assert field.low is not None
    assert field.high is not None
    inside = st.integers(field.low, field.high)
    values = inside if field.datatype == "INT64" else st.one_of(inside, st.floats(field.low, field.high, width=32))
    found = st.lists(values, min_size=1, max_size=5 if field.many else 1)
    return found.map(lambda given: sorted(set(given), reverse=True)) if field.many else found


def mostly(values: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[Any]]:
    return st.integers(0, 9).flatmap(lambda n: values if n else st.lists(JUNK))


def tensors(fields: list[Field]) -> st.SearchStrategy[dict[str, list[Any]]]:
    values = {field.name: mostly(plausible(field)) for field in fields}
    return st.fixed_dictionaries({"prompt": st.text(max_size=9).map(lambda text: [text]), **values})


def size(name: str, picture: Picture) -> tuple[int, int]:
    return (384, 384) if isinstance(picture, bytes) else (picture.shape[0], picture.shape[1])


def sent_again(request: Request) -> dict[str, list[Any]]:
    """What metadata shows of a request, with the pictures in place of what is said of them."""
    files = {name: value for name, value in request.pictures.items() if isinstance(value, bytes)}
    arrays = {ARRAY_OF[name]: value for name, value in request.pictures.items() if name not in files}
    told = {name: value for name, value in request.shown().items() if name not in request.pictures}
    return {k: list(v) if isinstance(v, tuple) else [v] for k, v in {**told, **files, **arrays}.items()}


SIZES = ((512, 512), (768, 512))
LIMITS = Limits(SIZES, max_images=4, max_steps=100, layers=2, upscalers={"x4": ((2048, 2048),)})
# Checkpoints, each with fields that come beside any others: alone, many are of no use.
TOGETHER: list[list[str]] = [
    [],
    ["init_image"],
    ["init_pixels", "strength"],
    ["init_image", "mask_image", "only_masked"],
    ["init_pixels", "extend_left", "extend_top"],
    ["depth_map"],
    ["hires_height", "hires_strength"],
    ["upscale_model"],
]
KINDS: dict[str, tuple[Limits, list[list[str]]]] = {
    "base": (LIMITS, TOGETHER),
    "inpainting": (replace(LIMITS, task="inpainting"), TOGETHER),
    "depth": (
        replace(LIMITS, task="depth", estimates_depth=True),
        [["depth_map"], ["init_image"], ["init_pixels", "depth_image"], ["init_image", "hires_height"]],
    ),
    "upscaler": (
        replace(LIMITS, task="upscaling", enlarges=4, max_noise_level=350),
        [["init_image"], ["init_pixels", "noise_level"], ["init_image", "strength"]],
    ),
    "without an encoder": (replace(LIMITS, reads_pictures=False), [[], [], [], ["init_image"]]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_comes_is_a_request_or_refused(kind: str) -> None:
    limits, together = KINDS[kind]
    outcomes = Counter[bool]()
    some = st.lists(st.sampled_from(PUT_TOGETHER), max_size=3, unique_by=lambda field: field.name)
    company = st.sampled_from(together).map(lambda names: [FIELD_BY_NAME[name] for name in names])

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.tuples(some, company).flatmap(lambda both: tensors([*both[0], *both[1]])))
    def check(given: dict[str, list[Any]]) -> None:
        request = None
        with suppress(InvalidRequest):
            request = Request.parse(given, limits, size)
        outcomes[request is not None] += 1
        if request is None:
            return
        assert Request.parse(sent_again(request), limits, size) == request
        assert all(0 <= seed <= MAX_SEED for i in range(request.num_images) for seed in request.seeds(i))
        assert (request.height, request.width) in limits.resolutions
        passes = request.passes()
        assert len(passes) == 1 + bool(request.hires_height) + bool(request.upscale_model)
        assert request.only_masked or request.image_size == (passes[-1].height, passes[-1].width)

    check()
    assert min(outcomes[True], outcomes[False]) > 25, outcomes
