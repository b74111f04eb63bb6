"""The components of each checkpoint family as data: their tensors, with symbolic sizes.

Symbols: `rows` of a batch, `tokens` of a prompt, `height` and `width` of a latent. A word in braces is a number of
the checkpoint's configuration, a field of `Widths`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TypeAlias

from engines.component import Family, Task, TensorSpec

Side: TypeAlias = tuple[TensorSpec, ...]

# A UNet halves its latents up to three times and must double them back to the same size.
SIDE_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Widths:
    """The numbers of a checkpoint's configuration that its tensors depend on.

    Attributes:
        text_width, text_width_2: of SDXL's two text encoders; side by side they are the `context_width`, which is
            also the width of an only one.
        pooled_width: of the second text encoder's projection of a whole prompt; 0 without a second.
        time_ids: numbers about sizes and crops, or the aesthetic score, that SDXL's UNets take.
        stage_channels: of the UNet's down path, from the finest resolution to the coarsest, which halves before each
            but the first; with `stage_layers` per stage they say which residuals a ControlNet adds.
        depth_side: in pixels, of the square pictures that the depth estimator takes; 0 without one.
    """

    context_length: int
    context_width: int
    latent_channels: int
    unet_channels: int
    downscale: int
    text_width: int = 0
    text_width_2: int = 0
    pooled_width: int = 0
    time_ids: int = 0
    stage_channels: tuple[int, ...] = ()
    stage_layers: int = 2
    depth_side: int = 0


IDS = {"input_ids": "int32 rows {context_length}"}
# The UNet takes a timestep per row, so that rows at different steps share a call.
DENOISED = {
    "sample": "float32 rows {unet_channels} height width",
    "timestep": "float32 rows",
    "encoder_hidden_states": "float32 rows tokens {context_width}",
}
LATENT = "float32 rows {latent_channels} height width"
PIXELS = "float32 rows 3 {downscale}*height {downscale}*width"
POOLED = "float32 rows {pooled_width}"

# Inputs and outputs of each component, without what `CONDITIONS` and ControlNets add. Text encoders leave out as many
# of their last layers as `clip_skip` says, row by row. SDXL's leave out one more, as it was trained, and its second one
# adds a projection of the whole prompt. The VAE encoder gives the moments (mean, then log-variance), so that the draw
# from them stays with the request's own generator.
TENSORS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "text_encoder": (
        IDS | {"clip_skip": "int32 rows"},
        {"last_hidden_state": "float32 rows {context_length} {text_width}"},
    ),
    "text_encoder_2": (
        IDS | {"clip_skip": "int32 rows"},
        {"last_hidden_state": "float32 rows {context_length} {text_width_2}", "text_embeds": POOLED},
    ),
    "unet": (DENOISED, {"out_sample": LATENT}),
    "controlnet": (DENOISED | {"controlnet_cond": PIXELS, "conditioning_scale": "float32 rows"}, {}),
    "vae_encoder": ({"image": PIXELS}, {"moments": "float32 rows 2*{latent_channels} height width"}),
    "vae_decoder": ({"latent": LATENT}, {"image": PIXELS}),
    "depth_estimator": (
        {"image": "float32 rows 3 {depth_side} {depth_side}"},
        {"depth": "float32 rows {depth_side} {depth_side}"},
    ),
}

SD_COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
XL_COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
COMPONENTS: dict[tuple[Family, Task], tuple[str, ...]] = {
    ("sd1", "text_to_image"): SD_COMPONENTS,
    ("sd1", "inpainting"): SD_COMPONENTS,
    ("sd1", "depth"): (*SD_COMPONENTS, "depth_estimator"),
    ("sd2", "text_to_image"): SD_COMPONENTS,
    ("sd2", "inpainting"): SD_COMPONENTS,
    ("sd2", "depth"): (*SD_COMPONENTS, "depth_estimator"),
    ("x4", "upscaling"): SD_COMPONENTS,
    ("sdxl", "text_to_image"): XL_COMPONENTS,
    ("sdxl_refiner", "refining"): ("text_encoder_2", "unet", "vae_encoder", "vae_decoder"),
    ("controlnet", "control"): ("controlnet",),
}

# What else the UNet and the ControlNet take: the upscaler's noise level; SDXL's prompt as a whole, and sizes.
NOISE_LEVEL = {"class_labels": "int32 rows"}
SIZES = {"text_embeds": POOLED, "time_ids": "float32 rows {time_ids}"}


def components_of(
    family: Family, task: Task, widths: Widths, *, controlled: bool = False
) -> dict[str, tuple[Side, Side]]:
    """Inputs and outputs of every component of a checkpoint.

    Args:
        controlled: the UNet takes a ControlNet's residuals; zeros are no control.
    """
    conditions = (SIZES if widths.time_ids else {}) | (NOISE_LEVEL if family == "x4" else {})
    added = dict(residuals(widths)) if controlled or task == "control" else {}
    found = {}
    for name in COMPONENTS[family, task]:
        inputs, outputs = TENSORS[name]
        if name in ("unet", "controlnet"):
            inputs = inputs | conditions
        if name == "unet":
            inputs = inputs | added
        elif name == "controlnet":
            outputs = added
        found[name] = _tensors(inputs, widths), _tensors(outputs, widths)
    return found


def residuals(widths: Widths) -> Iterator[tuple[str, str]]:
    """Name and tensor of what a ControlNet adds to a UNet: to each of its skip connections, and to its middle."""
    last = len(widths.stage_channels) - 1
    skips = [(0, widths.stage_channels[0])]
    for stage, channels in enumerate(widths.stage_channels):
        skips += [(stage, channels)] * widths.stage_layers
        skips += [(stage + 1, channels)] if stage < last else []
    for index, (stage, channels) in enumerate(skips):
        yield f"down_residual_{index}", _feature_map(stage, channels)
    yield "mid_residual", _feature_map(last, widths.stage_channels[last])


def _feature_map(stage: int, channels: int) -> str:
    part = f"/{2**stage}" if stage else ""
    return f"float32 rows {channels} height{part} width{part}"


def _tensors(tensors: dict[str, str], widths: Widths) -> Side:
    numbers = asdict(widths) | {"text_width": widths.text_width or widths.context_width}
    made = []
    for name, tensor in tensors.items():
        dtype, *dims = tensor.format_map(numbers).split()
        made.append(TensorSpec(name, dtype, tuple(_dim(dim) for dim in dims)))
    return tuple(made)


def _dim(text: str) -> int | str:
    factor, _, symbol = text.partition("*")
    if text.isdecimal():
        return int(text)
    return int(factor) * int(symbol) if symbol.isdecimal() else text
