"""What a client may ask, and the one place where it is checked."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, cast

from server.errors import InvalidRequest
from server.request_checks import MAX_SEED, check, fitting_size
from server.sampler_names import SAMPLER_BY_NAME, SCHEDULES, find_sampler, find_schedule, nearest_sampler

Value: TypeAlias = str | int | float | bool | Sequence[float]
DataType: TypeAlias = Literal["STRING", "INT64", "FP32"]

SPACINGS = ("leading", "trailing", "linspace")
FINAL_SIGMAS = ("zero", "sigma_min")
NOISE_SOURCES = ("cpu", "philox")
PROMPT_SYNTAXES = ("none", "a1111", "a1111_no_norm", "a1111_ignore", "comfy", "compel")
OUTPUT_FORMATS = ("png", "jpeg", "webp", "raw")
ENCODINGS = ("binary", "base64")
MAX_PROMPT_BYTES = 16_384
MAX_LEVELS = 500
MAX_SIGMA = 10_000
RANDOM_SEED_LIMIT = 2**32


@dataclass(frozen=True, slots=True)
class Field:
    """One named tensor of a request, of shape [1], or [n] where it takes `many` values.

    `default` None means that the server chooses; `low` and `high` are inclusive.
    """

    name: str
    datatype: DataType
    default: Value | None
    meaning: str
    low: int | None = None
    high: int | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    many: bool = False

    @property
    def shape(self) -> str:
        return "[n]" if self.many else "[1]"

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.many:
            return f"1 to {MAX_LEVELS} numbers from {self.low} to {self.high}, each less than the one before"
        if self.datatype == "STRING":
            return f"UTF-8 text of at most {MAX_PROMPT_BYTES} bytes"
        kind = "a finite number" if self.datatype == "FP32" else "an integer"
        return f"{kind} from {self.low} to {self.high}"


FIELDS: tuple[Field, ...] = (
    Field("prompt", "STRING", None, "what to draw", required=True),
    Field("negative_prompt", "STRING", "", "what to avoid; needs guidance_scale above 1"),
    Field("height", "INT64", None, "pixels; with width, one of the exported resolutions", 1, 16384),
    Field("width", "INT64", None, "pixels", 1, 16384),
    Field("num_inference_steps", "INT64", 20, "denoising steps", 1, 500),
    Field("guidance_scale", "FP32", 7.5, "classifier-free guidance; 1 or less means none", 0, 100),
    Field("seed", "INT64", None, "of the first image; image i uses seed + i; random when absent", 0, MAX_SEED),
    Field("num_images", "INT64", 1, "images per request", 1, 16),
    Field("sampler", "STRING", None, "numerical method, by any of its names; the checkpoint's own when absent",
          choices=tuple(SAMPLER_BY_NAME)),
    Field("schedule", "STRING", None, "noise levels; the checkpoint's own when absent", choices=SCHEDULES),
    Field("timestep_spacing", "STRING", None, "the checkpoint's own when absent", choices=SPACINGS),
    Field("final_sigma", "STRING", None, "where the last step ends", choices=FINAL_SIGMAS),
    Field("rho", "FP32", None, "exponent of the karras and polyexponential schedules; theirs when absent", 0, 100),
    Field("sigmas", "FP32", None, "noise levels listed, without the final one", 0, MAX_SIGMA, many=True),
    Field("timesteps", "FP32", None, "trained timesteps listed", 0, 999, many=True),
    Field("eta", "FP32", None, "share of fresh noise, for the samplers that have it; theirs when absent", 0, 1),
    Field("solver_order", "INT64", None, "for the samplers that have it; theirs when absent", 1, 4),
    Field("guidance_rescale", "FP32", 0.0, "share of the positive's deviation that guidance keeps", 0, 1),
    Field("guidance_start", "FP32", 0.0, "part of the calls after which guidance begins", 0, 1),
    Field("guidance_end", "FP32", 1.0, "part of the calls after which guidance ends", 0, 1),
    Field("prompt_syntax", "STRING", "none", "how emphasis is written; none takes the text as it is",
          choices=PROMPT_SYNTAXES),
    Field("clip_skip", "INT64", 0, "last layers of the text encoder left out", 0, 11),
    Field("noise_source", "STRING", "cpu", "torch's CPU stream, or CUDA's (philox)", choices=NOISE_SOURCES),
    Field("subseed", "INT64", None, "of a variation; image i has seed and subseed + i; random if absent", 0, MAX_SEED),
    Field("subseed_strength", "FP32", 0.0, "0 is the seed's own noise, 1 the subseed's", 0, 1),
    Field("noise_seed_delta", "INT64", 0, "added to the seed for noise after the first", 0, MAX_SEED),
    Field("output_format", "STRING", "png", "raw is uint8 RGB, row by row", choices=OUTPUT_FORMATS),
    Field("encoding", "STRING", "binary", "base64 is for JSON clients", choices=ENCODINGS),
    Field("priority", "INT64", 0, "higher runs earlier among those that wait", -10, 10),
    Field("timeout_ms", "INT64", 0, "give up after so long; 0 means never", 0, 86_400_000),
    Field("progress_interval", "INT64", 0, "steps between progress events on a stream; 0 means none", 0, 500),
    Field("preview_interval", "INT64", 0, "steps between preview images on a stream; 0 means none", 0, 500),
    Field("stream_images", "INT64", 0, "1 sends each image of a stream as soon as it is done", 0, 1),
    Field("partial_result", "INT64", 0, "1 asks for the images as far as they are when cancelled by id or too late",
          0, 1),
    Field("client_id", "STRING", "", "who asks: clients share the server evenly"),
    Field("request_id", "STRING", "", "name to cancel the request by; Triton's request id when absent"),
)  # fmt: skip
FIELD_BY_NAME = {field.name: field for field in FIELDS}
# Sent alone, in place of a request.
CANCEL = Field("cancel", "STRING", None, "request_id of the open requests to cancel; sent alone")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded checkpoint and the deployment allow.

    Attributes:
        resolutions: (height, width) in pixels; the first is the default.
        sampler: the default, from the checkpoint's own scheduler.
        max_images: images of one request.
        max_steps: as many as the checkpoint's schedule has room for.
        timesteps: that the checkpoint was trained on.
        layers: of the text encoder.
        distilled: steps that `lcm` and `tcd` choose theirs from.
    """

    resolutions: tuple[tuple[int, int], ...]
    sampler: str = "euler"
    max_images: int = 16
    max_steps: int = 500
    timesteps: int = 1000
    layers: int = 12
    distilled: int = 50


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request; sizes in pixels, `seed` of the first image."""

    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    num_images: int
    sampler: str
    schedule: str | None
    timestep_spacing: str | None
    final_sigma: str | None
    rho: float | None
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    eta: float | None
    solver_order: int | None
    guidance_rescale: float
    guidance_start: float
    guidance_end: float
    prompt_syntax: str
    clip_skip: int
    noise_source: str
    subseed: int
    subseed_strength: float
    noise_seed_delta: int
    output_format: str
    encoding: str
    priority: int
    timeout_ms: int
    progress_interval: int
    preview_interval: int
    stream_images: int
    partial_result: int
    client_id: str
    request_id: str

    def seeds(self, index: int) -> tuple[int, int]:
        """Seed and subseed of an image; as in A1111, a variation keeps the seed and counts the subseed up."""
        varied = self.subseed_strength > 0
        return (self.seed, self.subseed + index) if varied else (self.seed + index, self.subseed)

    @property
    def guided(self) -> bool:
        """Whether an image takes two rows of a batch, negative and positive."""
        return self.guidance_scale > 1

    @classmethod
    def parse(cls, tensors: Mapping[str, Sequence[object]], limits: Limits) -> Request:
        """Check a request given as one list of values per named tensor.

        Raises:
            InvalidRequest: names the field, what came, what is allowed and what to do.
        """
        for name in tensors:
            if name not in FIELD_BY_NAME:
                raise InvalidRequest(unknown_field(name))
        values = {field.name: _value(field, tensors.get(field.name)) for field in FIELDS}
        sampler, labelled = cast("tuple[str, str | None]", values["sampler"] or (limits.sampler, None))
        listed = {name: tuple(cast(Sequence[float], values[name] or ())) for name in ("sigmas", "timesteps")}
        levels = len(listed["sigmas"] or listed["timesteps"])
        height, width = fitting_size(values["height"], values["width"], limits)
        chosen = {
            "height": height,
            "width": width,
            "sampler": sampler,
            "schedule": values["schedule"] or labelled,
            "num_inference_steps": levels or values["num_inference_steps"],
            **listed,
            "seed": _seed(values["seed"]),
            "subseed": _seed(values["subseed"]) if values["subseed_strength"] else values["subseed"] or 0,
        }
        request = cls(**{**values, **chosen})  # type: ignore[arg-type]
        check(request, limits)
        return request


def _seed(value: object) -> int:
    return secrets.randbelow(RANDOM_SEED_LIMIT) if value is None else cast(int, value)


def cancelled_id(tensors: Mapping[str, Sequence[object]]) -> str:
    """The id in a message that cancels.

    Raises:
        InvalidRequest: something else came with it, or it is no text.
    """
    if others := [name for name in tensors if name != CANCEL.name]:
        raise InvalidRequest(f"{CANCEL.name} came with {', '.join(others)}; send it alone")
    found = cast(str, _value(CANCEL, tensors[CANCEL.name]))
    if not found:
        raise InvalidRequest(f"{CANCEL.name} is empty; send the request_id of the requests to cancel")
    return found


def unknown_field(name: str) -> str:
    """The sentence for a tensor or parameter that is no field."""
    close = difflib.get_close_matches(name, FIELD_BY_NAME, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"the fields are {', '.join(FIELD_BY_NAME)}"
    return f"{name!r} is not a field of a request; {hint}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _value(field: Field, given: Sequence[object] | None) -> object:
    if given is None:
        if field.required:
            raise InvalidRequest(f"{field.name} is missing; send {field.allowed} with shape [1]")
        return field.default
    if field.many:
        return _numbers(field, given)
    if len(given) != 1:
        raise InvalidRequest(f"{field.name} has {len(given)} values; send exactly one, with shape [1]")
    if field.datatype == "STRING":
        return _text(field, given[0])
    return _number(field, given[0])


def _numbers(field: Field, given: Sequence[object]) -> tuple[float, ...]:
    if not 1 <= len(given) <= MAX_LEVELS:
        raise InvalidRequest(f"{field.name} has {len(given)} values; send {field.allowed}")
    numbers = tuple(float(_number(field, value)) for value in given)
    for i, (one, following) in enumerate(pairwise(numbers)):
        if following >= one:
            raise InvalidRequest(f"{field.name} has {following} after {one} (value {i + 2}); send {field.allowed}")
    return numbers


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
