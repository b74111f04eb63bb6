"""What a client may ask, and the one place where it is checked."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from server.errors import InvalidRequest

Value: TypeAlias = str | int | float | bool
DataType: TypeAlias = Literal["STRING", "INT64", "FP32"]

SAMPLERS = ("euler", "euler_ancestral", "ddim", "dpmpp_2m")
SAMPLER_ALIASES = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
SCHEDULES = ("normal", "karras")
OUTPUT_FORMATS = ("png", "jpeg", "webp", "raw")
ENCODINGS = ("binary", "base64")
MAX_PROMPT_BYTES = 16_384
MAX_SEED = 2**63 - 1
RANDOM_SEED_LIMIT = 2**32


@dataclass(frozen=True, slots=True)
class Field:
    """One named tensor of a request, of shape [1].

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

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
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
    Field("sampler", "STRING", None, "numerical method; diffusers' class names work too", choices=SAMPLERS),
    Field("schedule", "STRING", "normal", "noise levels", choices=SCHEDULES),
    Field("output_format", "STRING", "png", "raw is uint8 RGB, row by row", choices=OUTPUT_FORMATS),
    Field("encoding", "STRING", "binary", "base64 is for JSON clients", choices=ENCODINGS),
    Field("priority", "INT64", 0, "higher runs earlier among those that wait", -10, 10),
    Field("timeout_ms", "INT64", 0, "give up after so long; 0 means never", 0, 86_400_000),
    Field("progress_interval", "INT64", 0, "steps between progress events on a stream; 0 means none", 0, 500),
)
FIELD_BY_NAME = {field.name: field for field in FIELDS}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded checkpoint and the deployment allow.

    Attributes:
        resolutions: (height, width) in pixels; the first is the default.
        sampler: the default, from the checkpoint's own scheduler.
        max_images: images of one request.
        max_steps: as many as the checkpoint's schedule has room for.
    """

    resolutions: tuple[tuple[int, int], ...]
    sampler: str = "euler"
    max_images: int = 16
    max_steps: int = 500


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
    schedule: str
    output_format: str
    encoding: str
    priority: int
    timeout_ms: int
    progress_interval: int

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
        height, width = _size(values["height"], values["width"], limits)
        if cast(int, values["num_inference_steps"]) > limits.max_steps:
            raise InvalidRequest(
                f"num_inference_steps is {values['num_inference_steps']}; this checkpoint's schedule allows 1 to "
                f"{limits.max_steps}: send fewer"
            )
        if cast(int, values["num_images"]) > limits.max_images:
            raise InvalidRequest(
                f"num_images is {values['num_images']}; this server draws at most {limits.max_images} per request: "
                "send more requests, they share batches all the same"
            )
        seed = values["seed"] if values["seed"] is not None else secrets.randbelow(RANDOM_SEED_LIMIT)
        if cast(int, seed) + cast(int, values["num_images"]) - 1 > MAX_SEED:
            raise InvalidRequest(
                f"seed is {seed}; seed + num_images - 1 must not exceed {MAX_SEED}: send a smaller seed"
            )
        chosen = {
            "height": height,
            "width": width,
            "seed": seed,
            "sampler": values["sampler"] or limits.sampler,
        }
        return cls(**{**values, **chosen})  # type: ignore[arg-type]


def unknown_field(name: str) -> str:
    """The sentence for a tensor or parameter that is no field."""
    close = difflib.get_close_matches(name, FIELD_BY_NAME, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the fields are {', '.join(FIELD_BY_NAME)}"
    return f"{name!r} is not a field of a request; {hint}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _value(field: Field, given: Sequence[object] | None) -> Value | None:
    if given is None:
        if field.required:
            raise InvalidRequest(f"{field.name} is missing; send {field.allowed} with shape [1]")
        return field.default
    if len(given) != 1:
        raise InvalidRequest(f"{field.name} has {len(given)} values; send exactly one, with shape [1]")
    if field.datatype == "STRING":
        return _text(field, given[0])
    return _number(field, given[0])


def _text(field: Field, value: object) -> str:
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


def _choice(field: Field, value: str) -> str:
    canonical = SAMPLER_ALIASES.get(value, value) if field.name == "sampler" else value
    if canonical not in field.choices:
        close = difflib.get_close_matches(value, field.choices, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InvalidRequest(f"{field.name} is {_shown(value)}; send {field.allowed}{hint}")
    return canonical


def _number(field: Field, value: object) -> int | float:
    kinds = (int, float) if field.datatype == "FP32" else (int,)
    if isinstance(value, kinds) and not isinstance(value, bool) and _within(value, field.low, field.high):
        return float(value) if field.datatype == "FP32" else value
    raise InvalidRequest(f"{field.name} is {_shown(value)}; send {field.allowed} ({field.meaning})")


def _within(value: float, low: int | None, high: int | None) -> bool:
    """Whether low <= value <= high; NaN is not, and an integer too large for a float is compared as an integer."""
    return (low is None or value >= low) and (high is None or value <= high)


def _size(height: object, width: object, limits: Limits) -> tuple[int, int]:
    fitting = [(h, w) for h, w in limits.resolutions if height in (None, h) and width in (None, w)]
    if not fitting:
        sizes = ", ".join(f"{h}x{w}" for h, w in limits.resolutions)
        raise InvalidRequest(
            f"height x width is {height or 'default'}x{width or 'default'}; this server draws {sizes}: "
            "send one of these, or export the checkpoint with a further --resolution"
        )
    return fitting[0]
