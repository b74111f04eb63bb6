"""server.field_values: one field at a time, and the sentence that a client gets when it sends something else."""

from typing import Any

import pytest

from server.errors import InvalidRequest
from server.field_values import field_value
from server.fields import FIELD_BY_NAME, FIELDS, MAX_LEVELS, MAX_PROMPT_BYTES, Raster
from server.request import Limits, Request

LIMITS = Limits(((512, 512), (768, 512), (512, 768)), sampler="ddim", max_images=8)
HUGE = 10**400


def parse(limits: Limits = LIMITS, /, **fields: Any) -> Request:
    return Request.parse({"prompt": [b"a red circle"], **fields}, limits)


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.code == "INVALID_ARG"
    assert len(str(caught.value)) < 600
    return str(caught.value)


ARRAYS = [field for field in FIELDS if field.dims]
PICTURES = [field for field in FIELDS if field.picture]
MANY = [field for field in FIELDS if field.many]
ONE = [field for field in FIELDS if not field.many and not field.dims]
INTEGERS = [field for field in FIELDS if field.datatype == "INT64"]
NUMBERS = [field for field in FIELDS if field.datatype in ("INT64", "FP32") and not field.dims]
TEXTS = [field for field in FIELDS if field.datatype == "STRING" and not field.picture]
CHOICES = [field for field in FIELDS if field.choices]


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


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
@pytest.mark.parametrize("beyond", [1, 10**9, 2**64, HUGE], ids=["1", "1e9", "2^64", "1e400"])
def test_a_number_out_of_range_is_refused_with_the_range_in_plain_digits(field: Any, beyond: int) -> None:
    for value in (field.low - beyond, field.high + beyond):
        text = refusal(**{field.name: [value]})
        assert text.startswith(f"{field.name} is ")
        assert f"from {field.low} to {field.high}" in text


@pytest.mark.parametrize("field", [field for field in NUMBERS if not field.many], ids=lambda field: field.name)
def test_both_ends_of_a_range_are_allowed(field: Any) -> None:
    found = [field_value(field, [value]) for value in (field.low, field.high)]
    assert found == [field.low, field.high]
    assert {type(value) for value in found} == {int if field.datatype == "INT64" else float}


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
        ("resize_mode", "strech", "stretch"),
        ("masked_content", "latent noise", "latent_noise"),
        ("extend_fill", "gray", "grey"),
        ("hires_upscaler", "lancos", "lanczos"),
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


@pytest.mark.parametrize("name", [field.name for field in PICTURES])
@pytest.mark.parametrize("value", [None, 3, 2.5, True, ["a"], bytearray(b"a"), Raster((1, 1), b"a")])
def test_what_is_no_file_is_refused(name: str, value: object) -> None:
    text = refusal(**{name: [value]})
    assert text.startswith(f"{name} is {value!r}; send the bytes of a PNG, JPEG or WebP file, or their base64")


@pytest.mark.parametrize("field", PICTURES, ids=lambda field: field.name)
def test_a_file_comes_as_bytes_or_as_text_and_is_not_empty(field: Any) -> None:
    assert field_value(field, [b"\x89PNG\xff\x00"]) == b"\x89PNG\xff\x00"
    assert field_value(field, ["iVBORw0KGgo="]) == b"iVBORw0KGgo="
    assert field_value(field, [b"\xff" * (1 << 20)]) == b"\xff" * (1 << 20), "the deployment's limit is another"
    for empty in (b"", ""):
        text = refusal(**{field.name: [empty]})
        assert all(part in text for part in (f"{field.name} is empty", "or leave it out"))


@pytest.mark.parametrize("field", ARRAYS, ids=lambda field: field.name)
@pytest.mark.parametrize(
    "values", [[], [None], [b"abc"], ["abc"], [3], [Raster((1, 1), b"a")] * 2, [Raster((4,), b"abcd")],
               [Raster((0, 2), b"")], [Raster((2, 0), b"")], [Raster((1, 1, 1, 1), b"a")], [Raster((), b"a")]],
    ids=str,
)  # fmt: skip
def test_what_is_no_array_of_pixels_is_refused(field: Any, values: list[object]) -> None:
    text = refusal(**{field.name: values})
    assert text.startswith(f"{field.name} is ")
    assert text.endswith(f"send an array of shape {field.dims}")


def test_an_array_of_pixels_is_taken_as_it_came() -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "init_pixels": [(2, 3), (2, 3, 1), (2, 3, 3), (2, 3, 4)],
        "mask_pixels": [(2, 3)],
        "depth_map": [(2, 3)],
    }
    for name, allowed in shapes.items():
        for shape in allowed:
            raster = Raster(shape, bytes(range(24)))
            assert field_value(FIELD_BY_NAME[name], [raster]) is raster
    assert "of shape [2, 3, 1]" in refusal(mask_pixels=[Raster((2, 3, 1), b"abcdef")])
