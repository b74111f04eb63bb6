"""The named tensors of a request: what each means, and which values it takes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from server.sampler_names import SAMPLER_BY_NAME, SCHEDULES

if TYPE_CHECKING:
    import numpy.typing as npt

DataType: TypeAlias = Literal["STRING", "INT64", "FP32", "UINT8"]
ResizeMode: TypeAlias = Literal["stretch", "crop", "pad"]
Fill: TypeAlias = Literal["edge", "mirror", "grey", "noise"]

SPACINGS = ("leading", "trailing", "linspace")
FINAL_SIGMAS = ("zero", "sigma_min")
NOISE_SOURCES = ("cpu", "philox")
PROMPT_SYNTAXES = ("none", "a1111", "a1111_no_norm", "a1111_ignore", "comfy", "compel")
RESIZE_MODES: tuple[ResizeMode, ...] = ("stretch", "crop", "pad")
MASKED_CONTENTS = ("original", "fill", "latent_noise", "latent_nothing")
EXTEND_FILLS: tuple[Fill, ...] = ("edge", "mirror", "grey", "noise")
LATENT_UPSCALERS = ("latent", "latent_nearest", "latent_bicubic", "latent_antialiased", "latent_bicubic_antialiased")
PIXEL_UPSCALERS = ("lanczos", "bicubic", "nearest")
OUTPUT_FORMATS = ("png", "jpeg", "webp", "raw")
ENCODINGS = ("binary", "base64")
MAX_PROMPT_BYTES = 16_384
MAX_LEVELS = 500
MAX_SIGMA = 10_000
MAX_SEED = 2**63 - 1
MAX_SIDE = 16_384


@dataclass(frozen=True, slots=True)
class Raster:
    """A picture that came as an array.

    Attributes:
        shape: (height, width) or (height, width, channels).
        data: of its numbers, row by row: uint8, or float32 for a depth map.
    """

    shape: tuple[int, ...]
    data: bytes

    def __repr__(self) -> str:
        return f"an array of shape {list(self.shape)}"


Value: TypeAlias = "str | bytes | int | float | bool | Sequence[float] | Raster | npt.NDArray[Any]"


@dataclass(frozen=True, slots=True)
class Field:
    """One named tensor of a request, of shape [1], or [n] where it takes `many` values.

    `default` None means that the server chooses; `low` and `high` are inclusive. `picture` marks the bytes of an image
    file; `dims` is the shape of an array of pixels.
    """

    name: str
    datatype: DataType
    default: str | int | float | None
    meaning: str
    low: int | None = None
    high: int | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    many: bool = False
    picture: bool = False
    dims: str = ""

    @property
    def shape(self) -> str:
        return self.dims or ("[n]" if self.many else "[1]")

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.dims:
            return f"an array of shape {self.dims}"
        if self.picture:
            return "the bytes of a PNG, JPEG or WebP file, or their base64"
        if self.many:
            return f"1 to {MAX_LEVELS} numbers from {self.low} to {self.high}, each less than the one before"
        if self.datatype == "STRING":
            return f"UTF-8 text of at most {MAX_PROMPT_BYTES} bytes"
        kind = "a finite number" if self.datatype == "FP32" else "an integer"
        return f"{kind} from {self.low} to {self.high}"


def _picture(name: str, meaning: str) -> Field:
    return Field(name, "STRING", None, meaning, picture=True)


def _switch(name: str, default: int, meaning: str) -> Field:
    return Field(name, "INT64", default, meaning, 0, 1)


FIELDS: tuple[Field, ...] = (
    Field("prompt", "STRING", None, "what to draw", required=True),
    Field("negative_prompt", "STRING", "", "what to avoid; needs guidance_scale above 1"),
    Field("model", "STRING", "", "which of the loaded checkpoints; the first when absent"),
    Field("height", "INT64", None, "pixels; with width, one of the exported resolutions", 1, MAX_SIDE),
    Field("width", "INT64", None, "pixels", 1, MAX_SIDE),
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
    _picture("init_image", "the picture to begin with"),
    Field("init_pixels", "UINT8", None, "the same as an array: RGB, RGBA or grey", dims="[height, width, channels]"),
    Field("strength", "FP32", None, "part of the steps that are taken from init_image on; 0.8, or 1 with a mask", 0, 1),
    Field("resize_mode", "STRING", "stretch", "how init_image comes to height x width", choices=RESIZE_MODES),
    _picture("mask_image", "what to draw anew: white, of init_image's size"),
    Field("mask_pixels", "UINT8", None, "the same as an array", dims="[height, width]"),
    Field("mask_blur", "INT64", 4, "pixels by which the mask's edge is softened", 0, 64),
    _switch("mask_invert", 0, "1 draws anew what is black"),
    Field("masked_content", "STRING", "original", "what is under the mask at first", choices=MASKED_CONTENTS),
    _switch("soft_mask", 0, "1 takes greys of the mask as parts, on a UNet that takes no mask"),
    _switch("only_masked", 0, "1 draws the mask's surroundings at the full height x width"),
    Field("only_masked_padding", "INT64", 32, "pixels around the mask that are drawn with it", 0, 1024),
    _switch("keep_unmasked", 1, "1 puts the pixels outside the mask back as they were"),
    Field("extend_left", "INT64", 0, "pixels that are added to init_image and drawn", 0, 4096),
    Field("extend_right", "INT64", 0, "as extend_left", 0, 4096),
    Field("extend_top", "INT64", 0, "as extend_left", 0, 4096),
    Field("extend_bottom", "INT64", 0, "as extend_left", 0, 4096),
    Field("extend_fill", "STRING", "edge", "what is in the added pixels at first", choices=EXTEND_FILLS),
    Field("feather", "INT64", 8, "pixels of init_image along the seam that are drawn with it", 0, 256),
    _picture("depth_image", "a depth map, near is white; estimated from init_image when absent"),
    Field("depth_map", "FP32", None, "the same as an array of any scale", dims="[height, width]"),
    _switch("depth_invert", 0, "1 where far is white, or larger"),
    Field("noise_level", "INT64", 20, "noise on the picture that an upscaler enlarges; more lets it draw more", 0, 350),
    Field("hires_height", "INT64", None, "of a second pass, which draws the finished picture larger", 1, MAX_SIDE),
    Field("hires_width", "INT64", None, "as hires_height", 1, MAX_SIDE),
    Field("hires_strength", "FP32", 0.7, "strength of the second pass", 0, 1),
    Field("hires_steps", "INT64", 0, "of the second pass; 0 takes num_inference_steps", 0, 500),
    Field("hires_upscaler", "STRING", "latent", "how the first pass is enlarged",
          choices=LATENT_UPSCALERS + PIXEL_UPSCALERS),
    Field("upscale_model", "STRING", "", "an upscaler's checkpoint that enlarges the finished picture"),
    Field("upscale_steps", "INT64", 0, "of the upscaler; 0 takes num_inference_steps", 0, 500),
    Field("upscale_guidance_scale", "FP32", None, "of the upscaler; guidance_scale when absent", 0, 100),
    Field("output_format", "STRING", "png", "raw is uint8 RGB, row by row", choices=OUTPUT_FORMATS),
    Field("encoding", "STRING", "binary", "base64 is for JSON clients", choices=ENCODINGS),
    Field("priority", "INT64", 0, "higher runs earlier among those that wait", -10, 10),
    Field("timeout_ms", "INT64", 0, "give up after so long; 0 means never", 0, 86_400_000),
    Field("progress_interval", "INT64", 0, "steps between progress events on a stream; 0 means none", 0, 500),
    Field("preview_interval", "INT64", 0, "steps between preview images on a stream; 0 means none", 0, 500),
    _switch("stream_images", 0, "1 sends each image of a stream as soon as it is done"),
    _switch("partial_result", 0, "1 asks for the images as far as they are when cancelled by id or too late"),
    Field("client_id", "STRING", "", "who asks: clients share the server evenly"),
    Field("request_id", "STRING", "", "name to cancel the request by; Triton's request id when absent"),
)  # fmt: skip
FIELD_BY_NAME = {field.name: field for field in FIELDS}
# Sent alone, in place of a request.
CANCEL = Field("cancel", "STRING", None, "request_id of the open requests to cancel; sent alone")
# Pictures that may come as a file or as an array: two tensors, since each tensor has one type.
ARRAY_OF = {"init_image": "init_pixels", "mask_image": "mask_pixels", "depth_image": "depth_map"}


def unknown_field(name: str) -> str:
    """The sentence for a tensor or parameter that is no field."""
    close = difflib.get_close_matches(name, FIELD_BY_NAME, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"the fields are {', '.join(FIELD_BY_NAME)}"
    return f"{name!r} is not a field of a request; {hint}"
