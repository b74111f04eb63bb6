"""Values of a request's tensors, each checked against its field alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise

from server.errors import InvalidRequest
from server.fields import MAX_LEVELS, MAX_PROMPT_BYTES, Field, Raster
from server.sampler_names import find_sampler, find_schedule, nearest_sampler


def field_value(field: Field, given: Sequence[object] | None) -> object:
    """The value of a field from the list that came; its default where nothing came.

    Raises:
        InvalidRequest: names the field, what came, what is allowed and what to do.
    """
    if given is None:
        if field.required:
            raise InvalidRequest(f"{field.name} is missing; send {field.allowed} with shape [1]")
        return field.default
    if field.many:
        return _numbers(field, given)
    if field.dims:
        return _raster(field, given)
    if len(given) != 1:
        raise InvalidRequest(f"{field.name} has {len(given)} values; send exactly one, with shape [1]")
    if field.picture:
        return _bytes(field, given[0])
    if field.datatype == "STRING":
        return _text(field, given[0])
    return _number(field, given[0])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _numbers(field: Field, given: Sequence[object]) -> tuple[float, ...]:
    if not 1 <= len(given) <= MAX_LEVELS:
        raise InvalidRequest(f"{field.name} has {len(given)} values; send {field.allowed}")
    numbers = tuple(float(_number(field, value)) for value in given)
    for i, (one, following) in enumerate(pairwise(numbers)):
        if following >= one:
            raise InvalidRequest(f"{field.name} has {following} after {one} (value {i + 2}); send {field.allowed}")
    return numbers


def _raster(field: Field, given: Sequence[object]) -> Raster:
    """An array of pixels with as many dimensions as the field says; a single channel may be left out."""
    value = given[0] if len(given) == 1 else None
    if not isinstance(value, Raster):
        raise InvalidRequest(f"{field.name} is {_shown(value)}; send {field.allowed}")
    ranks = (2, 3) if field.dims.count(",") == 2 else (2,)
    if len(value.shape) not in ranks or 0 in value.shape:
        raise InvalidRequest(f"{field.name} is {value!r}; send {field.allowed}")
    return value


def _bytes(field: Field, value: object) -> bytes:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")
    if not isinstance(value, bytes):
        raise InvalidRequest(f"{field.name} is {_shown(value)}; send {field.allowed}")
    if not value:
        raise InvalidRequest(f"{field.name} is empty; send {field.allowed}, or leave it out")
    return value


def _text(field: Field, value: object) -> object:
    if isinstance(value, bytes):
        if len(value) > MAX_PROMPT_BYTES:
            raise InvalidRequest(f"{field.name} has {len(value)} bytes; send at most {MAX_PROMPT_BYTES}")
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"{field.name} is not valid UTF-8 (byte {error.start} is 0x{value[error.start]:02x}); send UTF-8"
            ) from None
    if not isinstance(value, str):
        raise InvalidRequest(f"{field.name} is {_shown(value)}; send {field.allowed}")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{field.name} cannot be written as UTF-8 (character {error.start} is half a surrogate pair); send UTF-8"
        ) from None
    if size > MAX_PROMPT_BYTES:
        raise InvalidRequest(f"{field.name} has over {MAX_PROMPT_BYTES} bytes; send a shorter text")
    if field.choices:
        return _choice(field, value)
    return value


def _choice(field: Field, value: str) -> object:
    if field.name == "sampler":
        return _sampler(field, value)
    canonical = find_schedule(value) if field.name == "schedule" else value
    if canonical not in field.choices:
        close = difflib.get_close_matches(value, field.choices, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InvalidRequest(f"{field.name} is {_shown(value)}; send {field.allowed}{hint}")
    return canonical


def _sampler(field: Field, value: str) -> tuple[str, str | None]:
    found = find_sampler(value)
    if found is None:
        close = nearest_sampler(value)
        hint = f"; did you mean {close!r}?" if close else ""
        raise InvalidRequest(f"{field.name} is {_shown(value)}; send {field.allowed}{hint}")
    return found


def _number(field: Field, value: object) -> int | float:
    kinds = (int, float) if field.datatype == "FP32" else (int,)
    if isinstance(value, kinds) and not isinstance(value, bool) and _within(value, field.low, field.high):
        return float(value) if field.datatype == "FP32" else value
    raise InvalidRequest(f"{field.name} is {_shown(value)}; send {field.allowed} ({field.meaning})")


def _within(value: float, low: int | None, high: int | None) -> bool:
    """Whether low <= value <= high; NaN is not, and an integer too large for a float is compared as an integer."""
    return (low is None or value >= low) and (high is None or value <= high)
