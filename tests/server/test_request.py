"""server.request: what a client may ask, and the sentence it gets when it asks for something else."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from server.errors import InvalidRequest
from server.request import (
    FIELDS,
    MAX_PROMPT_BYTES,
    MAX_SEED,
    RANDOM_SEED_LIMIT,
    SAMPLER_ALIASES,
    Limits,
    Request,
    unknown_field,
)

LIMITS = Limits(((512, 512), (768, 512), (512, 768)), sampler="ddim", max_images=8)
HUGE = 10**400


def parse(limits: Limits = LIMITS, **fields: Any) -> Request:
    return Request.parse({"prompt": [b"a red circle"], **fields}, limits)


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.code == "INVALID_ARG"
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_a_prompt_is_enough() -> None:
    request = parse()
    assert 0 <= request.seed < RANDOM_SEED_LIMIT
    assert request == Request(
        prompt="a red circle",
        negative_prompt="",
        height=512,
        width=512,
        num_inference_steps=20,
        guidance_scale=7.5,
        seed=request.seed,
        num_images=1,
        sampler="ddim",
        schedule="normal",
        output_format="png",
        encoding="binary",
        priority=0,
        timeout_ms=0,
        progress_interval=0,
    )


def test_everything_that_was_asked_is_kept() -> None:
    asked: dict[str, Any] = {
        "prompt": "ein Kreis, größer",
        "negative_prompt": "Wörter",
        "height": 768,
        "width": 512,
        "num_inference_steps": 33,
        "guidance_scale": 4.25,
        "seed": 123456789012,
        "num_images": 3,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "output_format": "webp",
        "encoding": "base64",
        "priority": -3,
        "timeout_ms": 60_000,
        "progress_interval": 5,
    }
    assert set(asked) == {field.name for field in FIELDS}
    request = Request.parse({name: [value] for name, value in asked.items()}, LIMITS)
    assert {name: getattr(request, name) for name in asked} == asked


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        parse().seed = 3  # type: ignore[misc]


def test_a_request_can_be_sent_again_as_it_was_understood() -> None:
    first = parse(sampler=["EulerDiscreteScheduler"], height=[768])
    again = Request.parse({field.name: [getattr(first, field.name)] for field in FIELDS}, LIMITS)
    assert again == first


@pytest.mark.parametrize("alias", SAMPLER_ALIASES)
def test_class_names_of_diffusers_are_samplers_too(alias: str) -> None:
    assert parse(sampler=[alias.encode()]).sampler == SAMPLER_ALIASES[alias]


@pytest.mark.parametrize(("scale", "guided"), [(0, False), (1, False), (1.0, False), (1.001, True), (7.5, True)])
def test_guidance_above_one_takes_a_negative_row(scale: float, guided: bool) -> None:
    request = parse(guidance_scale=[scale])
    assert request.guided is guided
    assert type(request.guidance_scale) is float


def test_absent_seeds_differ_between_requests() -> None:
    assert len({parse().seed for _ in range(20)}) > 15


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, (512, 512)),
        ({"height": [768]}, (768, 512)),
        ({"width": [768]}, (512, 768)),
        ({"height": [512]}, (512, 512)),
        ({"height": [512], "width": [768]}, (512, 768)),
    ],
)
def test_one_side_picks_the_first_resolution_that_has_it(asked: dict[str, Any], size: tuple[int, int]) -> None:
    request = parse(**asked)
    assert (request.height, request.width) == size


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"height": [640]}, "640xdefault"),
        ({"width": [8]}, "defaultx8"),
        ({"height": [768], "width": [768]}, "768x768"),
    ],
)
def test_a_size_that_was_not_exported_is_refused_with_those_that_were(asked: dict[str, Any], shown: str) -> None:
    text = refusal(**asked)
    assert all(part in text for part in ("height", "width", shown, "512x512, 768x512, 512x768", "--resolution"))


INTEGERS = [field for field in FIELDS if field.datatype == "INT64"]
NUMBERS = [field for field in FIELDS if field.datatype != "STRING"]
TEXTS = [field for field in FIELDS if field.datatype == "STRING"]
CHOICES = [field for field in FIELDS if field.choices]


@pytest.mark.parametrize("name", [field.name for field in FIELDS])
@pytest.mark.parametrize(("values", "shown"), [([], "0 values"), ([1, 1], "2 values"), (["a", "b", "c"], "3 values")])
def test_a_field_has_exactly_one_value(name: str, values: list[object], shown: str) -> None:
    text = refusal(**{name: values})
    assert all(part in text for part in (name, shown, "exactly one", "[1]"))


@pytest.mark.parametrize("name", [field.name for field in NUMBERS])
@pytest.mark.parametrize("value", [True, False, None, "20", b"20", [1], 1j, float("nan"), float("inf"), -float("inf")])
def test_what_is_no_finite_number_is_refused(name: str, value: object) -> None:
    text = refusal(**{name: [value]})
    assert text.startswith(f"{name} is {value!r}; send ")


@pytest.mark.parametrize("name", [field.name for field in INTEGERS])
@pytest.mark.parametrize("value", [1.0, 20.5, 1e300])
def test_an_integer_is_not_sent_as_a_float(name: str, value: float) -> None:
    text = refusal(**{name: [value]})
    assert text.startswith(f"{name} is {value!r}; send an integer from ")


BOUNDS = {
    "height": (1, 16384),
    "width": (1, 16384),
    "num_inference_steps": (1, 500),
    "guidance_scale": (0, 100),
    "seed": (0, MAX_SEED),
    "num_images": (1, 16),
    "priority": (-10, 10),
    "timeout_ms": (0, 86_400_000),
    "progress_interval": (0, 500),
}


@pytest.mark.parametrize(("name", "bounds"), BOUNDS.items())
@pytest.mark.parametrize("beyond", [1, 10**9, 2**64, HUGE], ids=["1", "1e9", "2^64", "1e400"])
def test_a_number_out_of_range_is_refused_with_the_range_in_plain_digits(
    name: str, bounds: tuple[int, int], beyond: int
) -> None:
    for value in (bounds[0] - beyond, bounds[1] + beyond):
        text = refusal(**{name: [value]})
        assert text.startswith(f"{name} is ")
        assert f"from {bounds[0]} to {bounds[1]}" in text


@pytest.mark.parametrize(
    ("name", "bounds"), [(name, bounds) for name, bounds in BOUNDS.items() if name not in ("height", "width")]
)
def test_both_ends_of_a_range_are_allowed(name: str, bounds: tuple[int, int]) -> None:
    limits = Limits(LIMITS.resolutions, max_images=16)
    assert [getattr(parse(limits, **{name: [value]}), name) for value in bounds] == list(bounds)


def test_every_number_has_bounds() -> None:
    assert {field.name: (field.low, field.high) for field in NUMBERS} == BOUNDS


def test_more_images_than_the_deployment_allows_are_refused() -> None:
    text = refusal(num_images=[9])
    assert all(part in text for part in ("num_images is 9", "at most 8", "more requests"))
    assert parse(num_images=[8]).num_images == 8


@pytest.mark.parametrize(("seed", "images"), [(MAX_SEED, 2), (MAX_SEED - 6, 8)])
def test_the_seed_of_the_last_image_must_be_a_seed(seed: int, images: int) -> None:
    text = refusal(seed=[seed], num_images=[images])
    assert all(part in text for part in (f"seed is {seed}", "num_images", str(MAX_SEED), "smaller"))
    assert parse(seed=[seed - 1], num_images=[images]).seed == seed - 1


@pytest.mark.parametrize("name", [field.name for field in TEXTS])
@pytest.mark.parametrize("value", [None, 3, 2.5, True, ["a"], bytearray(b"a")])
def test_what_is_no_text_is_refused(name: str, value: object) -> None:
    text = refusal(**{name: [value]})
    assert text.startswith(f"{name} is {value!r}; send ")


@pytest.mark.parametrize("name", [field.name for field in TEXTS])
@pytest.mark.parametrize("value", [b"a\xff", b"\xc3", b"\xed\xa0\x80"])
def test_invalid_utf8_is_refused_with_the_place(name: str, value: bytes) -> None:
    text = refusal(**{name: [value]})
    assert all(part in text for part in (name, "not valid UTF-8", "byte ", "send UTF-8"))


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_text_that_utf8_cannot_hold_is_refused(name: str) -> None:
    text = refusal(**{name: ["half a pair: \ud83d"]})
    assert all(part in text for part in (name, "UTF-8"))


@pytest.mark.parametrize("name", [field.name for field in TEXTS])
@pytest.mark.parametrize("value", ["x" * 2**20, b"x" * 2**20, "ü" * (MAX_PROMPT_BYTES // 2 + 1), b"\xff" * 2**20])
def test_a_text_that_is_too_long_is_refused_in_a_short_sentence(name: str, value: str | bytes) -> None:
    text = refusal(**{name: [value]})
    assert all(part in text for part in (name, str(MAX_PROMPT_BYTES)))


@pytest.mark.parametrize("value", ["x" * MAX_PROMPT_BYTES, "ü" * (MAX_PROMPT_BYTES // 2), "", "\x00", "🙂 größer"])
def test_a_text_within_the_limit_is_taken_as_text_or_bytes(value: str) -> None:
    assert parse(prompt=[value]).prompt == parse(prompt=[value.encode()]).prompt == value


def test_a_prompt_must_be_sent() -> None:
    with pytest.raises(InvalidRequest, match=r"prompt is missing; send UTF-8 text .* shape \[1\]"):
        Request.parse({}, LIMITS)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("sampler", "eulr", "euler"),
        ("sampler", "Euler", "euler"),
        ("sampler", "euler_ancestrall", "euler_ancestral"),
        ("sampler", "dpmpp2m", "dpmpp_2m"),
        ("schedule", "kerras", "karras"),
        ("output_format", "jpg", "jpeg"),
        ("encoding", "base-64", "base64"),
    ],
)
def test_a_near_miss_is_answered_with_what_was_meant(name: str, value: str, meant: str) -> None:
    text = refusal(**{name: [value]})
    assert text.startswith(f"{name} is {value!r}; send one of ")
    assert text.endswith(f"did you mean {meant!r}?")


@pytest.mark.parametrize("field", CHOICES, ids=lambda field: field.name)
@pytest.mark.parametrize("value", ["zzzzzz", "", "x" * 9000])
def test_an_unknown_choice_is_answered_with_all_choices(field: Any, value: str) -> None:
    text = refusal(**{field.name: [value]})
    assert field.name in text
    assert ", ".join(field.choices) in text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("promt", "prompt"),
        ("num_steps", "num_inference_steps"),
        ("guidance", "guidance_scale"),
        ("samplers", "sampler"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest_one(name: str, meant: str) -> None:
    text = refusal(**{name: [1]})
    assert all(part in text for part in (repr(name), "not a field", repr(meant)))


def test_an_unknown_field_like_no_other_is_answered_with_all_fields() -> None:
    assert all(field.name in unknown_field("zzzzzz") for field in FIELDS)


def test_the_default_sampler_is_the_checkpoints() -> None:
    assert parse(Limits(((8, 8),), sampler="euler_ancestral")).sampler == "euler_ancestral"
    assert parse(Limits(((8, 8),))).sampler == "euler"
