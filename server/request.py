"""What a client may ask, and the one place where it is checked."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from server.attachments import Measure, Picture, attached, described, length, source_size
from server.errors import InvalidRequest
from server.field_values import field_value
from server.fields import ARRAY_OF, CANCEL, FIELD_BY_NAME, FIELDS, unknown_field
from server.request_checks import check
from server.request_sizes import UPSCALING, fitting_size
from server.task_checks import check_task, task_of

RANDOM_SEED_LIMIT = 2**32
# Of a picture's influence where strength is absent; with a mask, what is under it is drawn from nothing but noise.
STRENGTH, MASKED_STRENGTH = 0.8, 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a loaded checkpoint and the deployment allow.

    Attributes:
        resolutions: (height, width) in pixels; the first is the default.
        sampler: the default, from the checkpoint's own scheduler.
        model: the checkpoint's name.
        task: what its UNet was trained for; see `engines.component.Task`.
        max_images: images of one request.
        max_steps: as many as the checkpoint's schedule has room for.
        timesteps: that the checkpoint was trained on.
        layers: of the text encoder.
        distilled: steps that `lcm` and `tcd` choose theirs from.
        enlarges: how many times larger than the picture that comes is the one that is drawn.
        max_noise_level: of an upscaler.
        reads_pictures: whether it has a VAE encoder.
        estimates_depth: whether it has a depth estimator.
        upscalers: name and resolutions of each loaded upscaler.
    """

    resolutions: tuple[tuple[int, int], ...]
    sampler: str = "euler"
    model: str = ""
    task: str = "text_to_image"
    max_images: int = 16
    max_steps: int = 500
    timesteps: int = 1000
    layers: int = 12
    distilled: int = 50
    enlarges: int = 1
    max_noise_level: int = 350
    reads_pictures: bool = True
    estimates_depth: bool = False
    upscalers: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request; sizes in pixels, `seed` of the first image.

    `task` is one of `server.task_checks.TASKS`; `source_height` and `source_width` are those of `init_image`, 0 without
    one. Other attributes are fields.
    """

    prompt: str
    negative_prompt: str
    model: str
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
    init_image: Picture | None
    strength: float | None
    resize_mode: str
    mask_image: Picture | None
    mask_blur: int
    mask_invert: int
    masked_content: str
    soft_mask: int
    only_masked: int
    only_masked_padding: int
    keep_unmasked: int
    extend_left: int
    extend_right: int
    extend_top: int
    extend_bottom: int
    extend_fill: str
    feather: int
    depth_image: Picture | None
    depth_invert: int
    noise_level: int
    hires_height: int
    hires_width: int
    hires_strength: float
    hires_steps: int
    hires_upscaler: str
    upscale_model: str
    upscale_steps: int
    upscale_guidance_scale: float | None
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
    task: str
    source_height: int
    source_width: int

    def seeds(self, index: int) -> tuple[int, int]:
        """Seed and subseed of an image; as in A1111, a variation keeps the seed and counts the subseed up."""
        varied = self.subseed_strength > 0
        return (self.seed, self.subseed + index) if varied else (self.seed + index, self.subseed)

    @property
    def guided(self) -> bool:
        """Whether an image takes two rows of a batch, negative and positive."""
        return self.guidance_scale > 1

    @property
    def pictures(self) -> dict[str, Picture]:
        """The pictures that came, by field."""
        found = {name: getattr(self, name) for name in ARRAY_OF}
        return {name: picture for name, picture in found.items() if picture is not None}

    @property
    def picture_bytes(self) -> int:
        """Of the pictures that came."""
        return sum(map(length, self.pictures.values()))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that are answered."""
        if self.only_masked:
            return self.source_height, self.source_width
        height, width = (self.hires_height, self.hires_width) if self.hires_height else (self.height, self.width)
        return (UPSCALING * height, UPSCALING * width) if self.upscale_model else (height, width)

    def shown(self) -> dict[str, Any]:
        """The fields that have a value, which sent again ask for the same; pictures by their size and SHA-256."""
        found = {name: getattr(self, name) for name in FIELD_BY_NAME if name not in ARRAY_OF.values()}
        told = {name: value for name, value in found.items() if value is not None and value != ()}
        if not self.hires_height:
            del told["hires_height"], told["hires_width"]
        return told | {name: described(picture) for name, picture in self.pictures.items()}

    def passes(self) -> tuple[Request, ...]:
        """What is drawn one after the other, each a request of its own; those after the first begin with a picture."""
        if not (self.hires_height or self.upscale_model):
            return (self,)
        alone = replace(self, hires_height=0, hires_width=0, upscale_model="")
        found = [alone]
        if self.hires_height:
            steps = self.hires_steps or self.num_inference_steps
            found.append(
                replace(
                    alone,
                    task="image_to_image",
                    height=self.hires_height,
                    width=self.hires_width,
                    num_inference_steps=steps,
                    strength=self.hires_strength,
                )
            )
        if self.upscale_model:
            height, width = found[-1].height, found[-1].width
            scale = self.upscale_guidance_scale
            found.append(
                replace(
                    alone,
                    task="upscaling",
                    model=self.upscale_model,
                    height=UPSCALING * height,
                    width=UPSCALING * width,
                    num_inference_steps=self.upscale_steps or self.num_inference_steps,
                    guidance_scale=self.guidance_scale if scale is None else scale,
                    strength=None,
                    source_height=height,
                    source_width=width,
                )
            )
        return tuple(found)

    @classmethod
    def parse(cls, tensors: Mapping[str, Sequence[object]], limits: Limits, measure: Measure | None = None) -> Request:
        """Check a request given as one list of values per named tensor.

        Args:
            limits: of the checkpoint that `chosen_model` names.
            measure: tells the size of a picture from its header; raises InvalidRequest where it is none.

        Raises:
            InvalidRequest: names the field, what came, what is allowed and what to do.
        """
        for name in tensors:
            if name not in FIELD_BY_NAME:
                raise InvalidRequest(unknown_field(name))
        values = {field.name: field_value(field, tensors.get(field.name)) for field in FIELDS}
        values |= attached(values)
        task = task_of(values, limits)
        check_task(values, task, limits)
        sampler, labelled = cast("tuple[str, str | None]", values["sampler"] or (limits.sampler, None))
        listed = {name: tuple(cast(Sequence[float], values[name] or ())) for name in ("sigmas", "timesteps")}
        levels = len(listed["sigmas"] or listed["timesteps"])
        source = source_size(values, measure)
        height, width = fitting_size(values, task, source, limits)
        hires = values["hires_height"], values["hires_width"]
        chosen = {
            "model": limits.model,
            "height": height,
            "width": width,
            "sampler": sampler,
            "schedule": values["schedule"] or labelled,
            "num_inference_steps": levels or values["num_inference_steps"],
            **listed,
            "seed": _seed(values["seed"]),
            "subseed": _seed(values["subseed"]) if values["subseed_strength"] else values["subseed"] or 0,
            "hires_height": hires[0] or hires[1] or 0,
            "hires_width": hires[1] or hires[0] or 0,
            "strength": _strength(values, task),
            "task": task,
            "source_height": source[0],
            "source_width": source[1],
        }
        request = cls(**{**values, **chosen})  # type: ignore[arg-type]
        check(request, limits)
        return request


def chosen_model(tensors: Mapping[str, Sequence[object]], names: Sequence[str]) -> str:
    """Which of the loaded checkpoints a request is for; the first where it says none.

    Raises:
        InvalidRequest: none of them.
    """
    asked = field_value(FIELD_BY_NAME["model"], tensors.get("model")) or names[0]
    if asked not in names:
        raise InvalidRequest(f"model is {asked!r}; this server has {', '.join(names)}: send one of these")
    return cast(str, asked)


def _seed(value: object) -> int:
    return secrets.randbelow(RANDOM_SEED_LIMIT) if value is None else cast(int, value)


def _strength(values: Mapping[str, object], task: str) -> float | None:
    """Rounded, because 0.8 in float32 is a little more than 0.8."""
    if values["init_image"] is None or task == "upscaling":
        return None
    masked = task in ("inpainting", "outpainting")
    given = values["strength"]
    return (MASKED_STRENGTH if masked else STRENGTH) if given is None else round(cast(float, given), 6)


def cancelled_id(tensors: Mapping[str, Sequence[object]]) -> str:
    """The id in a message that cancels.

    Raises:
        InvalidRequest: something else came with it, or it is no text.
    """
    if others := [name for name in tensors if name != CANCEL.name]:
        raise InvalidRequest(f"{CANCEL.name} came with {', '.join(others)}; send it alone")
    found = cast(str, field_value(CANCEL, tensors[CANCEL.name]))
    if not found:
        raise InvalidRequest(f"{CANCEL.name} is empty; send the request_id of the requests to cancel")
    return found
