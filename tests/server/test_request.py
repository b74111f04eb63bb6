"""server.request: what a client may ask, field by field, and the sentence it gets when it asks for something else."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from server.errors import InvalidRequest
from server.request import FIELDS, MAX_LEVELS, MAX_PROMPT_BYTES, RANDOM_SEED_LIMIT, Limits, Request, unknown_field

LIMITS = Limits(((512, 512), (768, 512), (512, 768)), sampler="ddim", max_images=8)
HUGE, MAX_SEED = 10**400, 2**63 - 1


def parse(limits: Limits = LIMITS, /, **fields: Any) -> Request:
    return Request.parse({"prompt": [b"a red circle"], **fields}, limits)


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.code == "INVALID_ARG"
    assert len(str(caught.value)) < 600
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
        schedule=None,
        timestep_spacing=None,
        final_sigma=None,
        rho=None,
        sigmas=(),
        timesteps=(),
        eta=None,
        solver_order=None,
        guidance_rescale=0.0,
        guidance_start=0.0,
        guidance_end=1.0,
        prompt_syntax="none",
        clip_skip=0,
        noise_source="cpu",
        subseed=0,
        subseed_strength=0.0,
        noise_seed_delta=0,
        output_format="png",
        encoding="binary",
        priority=0,
        timeout_ms=0,
        progress_interval=0,
        preview_interval=0,
        stream_images=0,
        partial_result=0,
        client_id="",
        request_id="",
    )


EVERYTHING: dict[str, Any] = {
    "prompt": "ein Kreis, größer",
    "negative_prompt": "Wörter",
    "height": 768,
    "width": 512,
    "num_inference_steps": 33,
    "guidance_scale": 4.25,
    "seed": 123456789012,
    "num_images": 3,
    "sampler": "euler_ancestral",
    "schedule": "karras",
    "timestep_spacing": "trailing",
    "final_sigma": "sigma_min",
    "rho": 6.5,
    "eta": 0.5,
    "guidance_rescale": 0.75,
    "guidance_start": 0.25,
    "guidance_end": 0.875,
    "prompt_syntax": "compel",
    "clip_skip": 2,
    "noise_source": "philox",
    "subseed": 210987654321,
    "subseed_strength": 0.125,
    "noise_seed_delta": 31337,
    "output_format": "webp",
    "encoding": "base64",
    "priority": -3,
    "timeout_ms": 60_000,
    "progress_interval": 5,
    "preview_interval": 7,
    "stream_images": 1,
    "partial_result": 1,
    "client_id": "gallery",
    "request_id": "gallery-17",
}
# What cannot be asked together with all of the above.
LISTED: list[dict[str, Any]] = [
    {"sampler": "lms", "solver_order": 3, "sigmas": (14.5, 3.0, 0.25)},
    {"sampler": "ddim", "timesteps": (901.0, 500.5, 1.0)},
]


@pytest.mark.parametrize("asked", [EVERYTHING, *LISTED], ids=["most", "sigmas", "timesteps"])
def test_everything_that_was_asked_is_kept(asked: dict[str, Any]) -> None:
    values = {name: list(value) if isinstance(value, tuple) else [value] for name, value in asked.items()}
    request = parse(**values)
    assert {name: getattr(request, name) for name in asked} == asked
    assert all(type(getattr(request, name)) is type(asked[name]) for name in asked)


def test_everything_is_all_fields_and_no_default() -> None:
    asked: dict[str, Any] = dict(item for part in LISTED for item in part.items()) | EVERYTHING
    assert set(asked) == {field.name for field in FIELDS}
    assert [field.name for field in FIELDS if asked[field.name] == field.default] == []


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        parse().seed = 3  # type: ignore[misc]


def test_a_request_can_be_sent_again_as_it_was_understood() -> None:
    first = parse(sampler=["DPM++ 2M Karras"], height=[768], subseed_strength=[0.5])
    values = {field.name: getattr(first, field.name) for field in FIELDS}
    again = parse(**{name: [value] for name, value in values.items() if value not in (None, ())})
    assert again == first


@pytest.mark.parametrize("name", ["seed", "subseed"])
def test_absent_seeds_differ_between_requests(name: str) -> None:
    assert len({getattr(parse(subseed_strength=[0.5]), name) for _ in range(20)}) > 15


MANY = [field for field in FIELDS if field.many]
ONE = [field for field in FIELDS if not field.many]
INTEGERS = [field for field in FIELDS if field.datatype == "INT64"]
NUMBERS = [field for field in FIELDS if field.datatype != "STRING"]
TEXTS = [field for field in FIELDS if field.datatype == "STRING"]
CHOICES = [field for field in FIELDS if field.choices]


def test_only_the_lists_of_levels_take_many_values() -> None:
    assert {field.name: field.shape for field in MANY} == {"sigmas": "[n]", "timesteps": "[n]"}
    assert {field.shape for field in ONE} == {"[1]"}


@pytest.mark.parametrize("name", [field.name for field in ONE])
@pytest.mark.parametrize(("values", "shown"), [([], "0 values"), ([1, 1], "2 values"), (["a", "b", "c"], "3 values")])
def test_a_field_has_exactly_one_value(name: str, values: list[object], shown: str) -> None:
    text = refusal(**{name: values})
    assert all(part in text for part in (name, shown, "exactly one", "[1]"))


@pytest.mark.parametrize("name", [field.name for field in MANY])
@pytest.mark.parametrize("count", [0, MAX_LEVELS + 1])
def test_a_list_has_from_1_to_500_values(name: str, count: int) -> None:
    text = refusal(**{name: [999 - 0.5 * i for i in range(count)]})
    assert text.startswith(f"{name} has {count} values; send 1 to 500 numbers")
    assert parse(**{name: [5.0]}, sampler=["euler"]).num_inference_steps == 1
    most = [999 - 0.5 * i for i in range(MAX_LEVELS)]
    assert parse(**{name: most}, sampler=["euler"]).num_inference_steps == 500


@pytest.mark.parametrize("name", [field.name for field in MANY])
@pytest.mark.parametrize(
    ("values", "said"),
    [([5, 5], "has 5.0 after 5.0 (value 2)"), ([9, 7.5, 3, 4, 1], "has 4.0 after 3.0 (value 4)")],
)
def test_a_list_must_descend(name: str, values: list[float], said: str) -> None:
    text = refusal(**{name: values}, sampler=["euler"])
    assert text.startswith(f"{name} {said}")
    assert "each less than the one before" in text


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
    "rho": (0, 100),
    "sigmas": (0, 10_000),
    "timesteps": (0, 999),
    "eta": (0, 1),
    "solver_order": (1, 4),
    "guidance_rescale": (0, 1),
    "guidance_start": (0, 1),
    "guidance_end": (0, 1),
    "clip_skip": (0, 11),
    "subseed": (0, MAX_SEED),
    "subseed_strength": (0, 1),
    "noise_seed_delta": (0, MAX_SEED),
    "priority": (-10, 10),
    "timeout_ms": (0, 86_400_000),
    "progress_interval": (0, 500),
    "preview_interval": (0, 500),
    "stream_images": (0, 1),
    "partial_result": (0, 1),
}
# These have a further rule at one of their ends, or need a certain value: see test_request_checks.
NOT_AT_BOTH_ENDS = ("height", "width", "sigmas", "timesteps", "guidance_start", "guidance_end")


@pytest.mark.parametrize(("name", "bounds"), BOUNDS.items())
@pytest.mark.parametrize("beyond", [1, 10**9, 2**64, HUGE], ids=["1", "1e9", "2^64", "1e400"])
def test_a_number_out_of_range_is_refused_with_the_range_in_plain_digits(
    name: str, bounds: tuple[int, int], beyond: int
) -> None:
    for value in (bounds[0] - beyond, bounds[1] + beyond):
        text = refusal(**{name: [value]})
        assert text.startswith(f"{name} is ")
        assert f"from {bounds[0]} to {bounds[1]}" in text


@pytest.mark.parametrize(("name", "bounds"), [item for item in BOUNDS.items() if item[0] not in NOT_AT_BOTH_ENDS])
def test_both_ends_of_a_range_are_allowed(name: str, bounds: tuple[int, int]) -> None:
    limits = Limits(LIMITS.resolutions, sampler="lms" if name == "solver_order" else "ddim", max_images=16)
    assert [getattr(parse(limits, **{name: [value]}), name) for value in bounds] == list(bounds)


def test_every_number_has_bounds() -> None:
    assert {field.name: (field.low, field.high) for field in NUMBERS} == BOUNDS


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
        ("sampler", "euler_ancestrall", "euler_ancestral"),
        ("sampler", "dpmpp2m", "dpmpp_2m"),
        ("sampler", "DPM++ 2N", "dpmpp_2m"),
        ("sampler", "DPMSolverMultistepSchedular", "dpmpp_2m"),
        ("schedule", "kerras", "karras"),
        ("timestep_spacing", "leeding", "leading"),
        ("prompt_syntax", "A1111", "a1111"),
        ("noise_source", "philo", "philox"),
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
