"""Which task a request is, and which of its fields go together for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from server.errors import InvalidRequest
from server.fields import FIELD_BY_NAME, PIXEL_UPSCALERS
from server.request_sizes import UPSCALING

if TYPE_CHECKING:
    from server.request import Limits

TASKS = ("text_to_image", "image_to_image", "inpainting", "outpainting", "depth_to_image", "upscaling")
SIDES = ("extend_left", "extend_right", "extend_top", "extend_bottom")
# What is of no use without something else, and what that is.
NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("strength", "resize_mode", "mask_image", *SIDES), ("init_image",)),
    **dict.fromkeys(("mask_blur", "mask_invert", "masked_content", "soft_mask", "only_masked"), ("mask_image",)),
    "only_masked_padding": ("only_masked",),
    "keep_unmasked": ("mask_image", *SIDES),
    **dict.fromkeys(("extend_fill", "feather"), SIDES),
    "depth_invert": ("depth_image",),
    **dict.fromkeys(("hires_strength", "hires_steps", "hires_upscaler"), ("hires_height", "hires_width")),
    **dict.fromkeys(("upscale_steps", "upscale_guidance_scale"), ("upscale_model",)),
}
# What an upscaler does not do, and what a mask or an extension does not go with.
NOT_UPSCALING = ("strength", "mask_image", *SIDES, "hires_height", "hires_width", "upscale_model")
NOT_EXTENDING = ("mask_image", "resize_mode")
NOT_MASKED = ("hires_height", "hires_width")


def task_of(values: Mapping[str, object], limits: Limits) -> str:
    """One of `TASKS`: the checkpoint says it, or what came with the request."""
    if limits.task == "upscaling":
        return "upscaling"
    if limits.task == "depth":
        return "depth_to_image"
    if _given(values, SIDES):
        return "outpainting"
    if values["mask_image"] is not None:
        return "inpainting"
    return "text_to_image" if values["init_image"] is None else "image_to_image"


def check_task(values: Mapping[str, object], task: str, limits: Limits) -> None:
    """Check that the fields of a request fit its task and one another.

    Raises:
        InvalidRequest: names the field, what came, what is allowed and what to do.
    """
    for name, needed in NEEDS.items():
        if _given(values, (name,)) and not _given(values, needed):
            raise InvalidRequest(f"{_came(values, name)}, but no {' or '.join(needed)}; send that too, or leave it out")
    _check_pictures(values, task, limits)
    _check_together(values, task)
    if task in ("inpainting", "outpainting"):
        _refuse(values, NOT_MASKED, "the picture is drawn in part only", "draw it first, and enlarge it as a whole")
    _check_checkpoint(values, task, limits)
    if values["upscale_model"]:
        _check_upscaler(values, limits)


def _check_pictures(values: Mapping[str, object], task: str, limits: Limits) -> None:
    sent = values["init_image"] is not None
    if task == "upscaling" and not sent:
        raise InvalidRequest(f"init_image is missing; model {limits.model!r} enlarges pictures: send one")
    if task == "depth_to_image":
        if not sent and values["depth_image"] is None:
            raise InvalidRequest(
                f"init_image and depth_image are missing; model {limits.model!r} draws on the depth of a picture: send "
                "one of them, or both"
            )
        if values["depth_image"] is None and not limits.estimates_depth:
            raise InvalidRequest(
                f"depth_image is missing, and model {limits.model!r} has no depth estimator; send a depth map"
            )
    pixel_pass = _given(values, NOT_MASKED) and values["hires_upscaler"] in PIXEL_UPSCALERS
    if ((sent and task != "upscaling") or pixel_pass) and not limits.reads_pictures:
        raise InvalidRequest(
            f"{'init_image came' if sent else 'hires_upscaler works on pixels'}, but model {limits.model!r} was "
            "exported without its VAE encoder; export it whole"
        )


def _check_together(values: Mapping[str, object], task: str) -> None:
    if task == "upscaling":
        _refuse(values, NOT_UPSCALING, "the model is an upscaler", "leave it out")
    if task == "outpainting":
        _refuse(values, NOT_EXTENDING, "the picture is extended", "extend it first, then send another request")
    if values["only_masked"] and values["upscale_model"]:
        raise InvalidRequest("upscale_model came with only_masked; send the finished picture to the upscaler instead")


def _check_checkpoint(values: Mapping[str, object], task: str, limits: Limits) -> None:
    if task != "depth_to_image":
        why = f"model {limits.model!r} does not look at depth"
        _refuse(values, ("depth_image",), why, "send the name of one that does as model, or leave it out")
    if task != "upscaling" and not values["upscale_model"]:
        _refuse(values, ("noise_level",), "no upscaler is asked for", "send upscale_model too, or leave it out")
    if task == "depth_to_image":
        _refuse(values, ("mask_image", *SIDES), f"model {limits.model!r} draws whole pictures", "leave it out")
    if cast(int, values["noise_level"]) > limits.max_noise_level and task == "upscaling":
        raise InvalidRequest(
            f"noise_level is {values['noise_level']}; model {limits.model!r} takes 0 to {limits.max_noise_level}"
        )
    if limits.task != "text_to_image":
        why = f"model {limits.model!r} has a UNet of its own kind"
        _refuse(values, NOT_MASKED, why, "enlarge the picture with image-to-image by another model")


def _check_upscaler(values: Mapping[str, object], limits: Limits) -> None:
    asked = cast(str, values["upscale_model"])
    if asked not in limits.upscalers:
        known = ", ".join(limits.upscalers) or "none: start it with an upscaler's export as a further --model"
        raise InvalidRequest(f"upscale_model is {asked!r}; this server's upscalers are {known}")


def check_enlarged(height: int, width: int, upscaler: str, limits: Limits) -> None:
    """Whether an upscaler takes a picture of this size.

    Raises:
        InvalidRequest: it was not exported for what would come out.
    """
    sizes = limits.upscalers[upscaler]
    if (UPSCALING * height, UPSCALING * width) not in sizes:
        taken = ", ".join(f"{h // UPSCALING}x{w // UPSCALING}" for h, w in sizes)
        raise InvalidRequest(
            f"upscale_model {upscaler!r} takes pictures of {taken}, and this one would be {height}x{width} (height x "
            "width); ask for one of these sizes, or export the upscaler with a further --resolution"
        )


def _given(values: Mapping[str, object], names: tuple[str, ...]) -> bool:
    """Whether any of these fields says something else than its default."""
    return any(values[name] != FIELD_BY_NAME[name].default for name in names)


def _came(values: Mapping[str, object], name: str) -> str:
    return f"{name} came" if FIELD_BY_NAME[name].picture else f"{name} is {values[name]}"


def _refuse(values: Mapping[str, object], names: tuple[str, ...], why: str, remedy: str) -> None:
    for name in names:
        if _given(values, (name,)):
            raise InvalidRequest(f"{_came(values, name)}, but {why}; {remedy}")
