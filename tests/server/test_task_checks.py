"""server.task_checks: which task a request is, and which fields go together for it."""

from dataclasses import replace
from typing import Any

import pytest

from server.attachments import Picture
from server.errors import InvalidRequest
from server.fields import FIELD_BY_NAME, Raster
from server.request import Limits, Request
from server.task_checks import NEEDS, NOT_UPSCALING, TASKS

LIMITS = Limits(((128, 128), (192, 192), (128, 192)), model="base")
INPAINTING = replace(LIMITS, model="inpainting", task="inpainting")
DEPTH = replace(LIMITS, model="depth", task="depth", estimates_depth=True)
UPSCALER = Limits(((512, 512), (768, 768)), model="upscaler", task="upscaling", enlarges=4, max_noise_level=350)
WITH_UPSCALER = replace(LIMITS, upscalers={"upscaler": UPSCALER.resolutions})
INIT, MASK, MAP = Raster((128, 128, 3), b""), Raster((128, 128), b""), Raster((64, 48), b"")
# Something else than the default of each field that has neither choices nor pictures.
OTHERS: dict[str, Any] = {
    "strength": 0.5,
    "hires_strength": 0.5,
    "only_masked_padding": 8,
    "noise_level": 30,
    "upscale_guidance_scale": 2.0,
    "upscale_model": "x",
}


def sizes(name: str, picture: Picture) -> tuple[int, int]:
    assert isinstance(picture, Raster)
    return picture.shape[0], picture.shape[1]


def parse(limits: Limits = LIMITS, /, **fields: Any) -> Request:
    return Request.parse({"prompt": ["a heart"], **{name: [value] for name, value in fields.items()}}, limits, sizes)


def refusal(limits: Limits = LIMITS, /, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(limits, **fields)
    return str(caught.value)


def other(name: str) -> Any:
    """A value of a field that is not its default."""
    field = FIELD_BY_NAME[name]
    if field.picture:
        return b"a file"
    if field.choices:
        return next(choice for choice in field.choices if choice != field.default)
    if field.high == 1 and field.datatype == "INT64":
        return 1 - int(field.default or 0)
    return OTHERS.get(name, 64)


@pytest.mark.parametrize(
    ("limits", "fields", "task"),
    [
        (LIMITS, {}, "text_to_image"),
        (LIMITS, {"init_pixels": INIT}, "image_to_image"),
        (LIMITS, {"init_pixels": INIT, "mask_pixels": MASK}, "inpainting"),
        (LIMITS, {"init_pixels": INIT, "extend_left": 64}, "outpainting"),
        (INPAINTING, {}, "text_to_image"),
        (INPAINTING, {"init_pixels": INIT}, "image_to_image"),
        (INPAINTING, {"init_pixels": INIT, "mask_pixels": MASK}, "inpainting"),
        (DEPTH, {"init_pixels": INIT}, "depth_to_image"),
        (DEPTH, {"depth_map": MAP}, "depth_to_image"),
        (UPSCALER, {"init_pixels": INIT}, "upscaling"),
    ],
)
def test_what_came_makes_the_task(limits: Limits, fields: dict[str, Any], task: str) -> None:
    assert parse(limits, **fields).task == task
    assert task in TASKS


@pytest.mark.parametrize("name", NEEDS)
def test_a_field_without_what_it_is_for_is_refused(name: str) -> None:
    text = refusal(**{name: other(name)})
    assert name in text
    assert any(needed in text for needed in NEEDS[name])


@pytest.mark.parametrize(
    ("limits", "fields", "strength"),
    [
        (LIMITS, {"init_pixels": INIT}, 0.8),
        (LIMITS, {"init_pixels": INIT, "mask_pixels": MASK}, 1.0),
        (LIMITS, {"init_pixels": INIT, "extend_left": 64}, 1.0),
        (DEPTH, {"init_pixels": INIT}, 0.8),
        (LIMITS, {"init_pixels": INIT, "strength": 0.25}, 0.25),
        (LIMITS, {}, None),
        (UPSCALER, {"init_pixels": INIT}, None),
    ],
)
def test_strength_has_the_references_defaults(limits: Limits, fields: dict[str, Any], strength: float | None) -> None:
    assert parse(limits, **fields).strength == strength


@pytest.mark.parametrize(
    ("limits", "fields", "words"),
    [
        (LIMITS, {"init_pixels": INIT, "init_image": b"file"}, ("both init_image and init_pixels",)),
        (LIMITS, {"init_pixels": INIT, "mask_pixels": Raster((64, 128), b"")}, ("64x128", "128x128", "mask")),
        (LIMITS, {"init_pixels": INIT, "mask_pixels": MASK, "extend_left": 64}, ("mask_image came", "extended")),
        (LIMITS, {"init_pixels": INIT, "mask_pixels": MASK, "hires_height": 192}, ("hires_height is 192", "in part")),
        (LIMITS, {"init_pixels": INIT, "depth_map": MAP}, ("depth_image came", "does not look at depth")),
        (LIMITS, {"noise_level": 30}, ("noise_level is 30", "upscale_model")),
        (LIMITS, {"upscale_model": "ghost"}, ("'ghost'", "none: start it")),
        (WITH_UPSCALER, {"upscale_model": "ghost"}, ("'ghost'", "upscaler")),
        (
            WITH_UPSCALER,
            {"init_pixels": INIT, "mask_pixels": MASK, "only_masked": 1, "upscale_model": "upscaler"},
            ("upscale_model came with only_masked",),
        ),
        (WITH_UPSCALER, {"width": 192, "height": 128, "upscale_model": "upscaler"}, ("128x128, 192x192", "128x192")),
        (DEPTH, {}, ("init_image and depth_image are missing", "'depth'")),
        (replace(DEPTH, estimates_depth=False), {"init_pixels": INIT}, ("no depth estimator",)),
        (DEPTH, {"init_pixels": INIT, "mask_pixels": MASK}, ("mask_image came", "whole pictures")),
        (DEPTH, {"init_pixels": INIT, "hires_height": 192}, ("hires_height is 192", "of its own kind")),
        (INPAINTING, {"hires_width": 192}, ("hires_width is 192", "of its own kind")),
        (UPSCALER, {}, ("init_image is missing", "enlarges")),
        (replace(UPSCALER, max_noise_level=250), {"init_pixels": INIT, "noise_level": 251}, ("0 to 250",)),
        (replace(LIMITS, reads_pictures=False), {"init_pixels": INIT}, ("without its VAE encoder",)),
        (
            replace(LIMITS, reads_pictures=False),
            {"hires_height": 192, "hires_upscaler": "lanczos"},
            ("works on pixels", "without its VAE encoder"),
        ),
        (LIMITS, {"height": 128, "hires_height": 160}, ("160x160", "128x128, 192x192")),
        (replace(LIMITS, max_steps=50), {"hires_height": 192, "hires_steps": 60}, ("hires_steps is 60", "50")),
    ],
)
def test_what_does_not_go_together_is_refused(limits: Limits, fields: dict[str, Any], words: tuple[str, ...]) -> None:
    text = refusal(limits, **fields)
    for word in words:
        assert word in text


@pytest.mark.parametrize("name", [name for name in NOT_UPSCALING if name != "mask_image"])
def test_an_upscaler_only_enlarges(name: str) -> None:
    assert "the model is an upscaler" in refusal(UPSCALER, init_pixels=INIT, **{name: other(name)})


def test_the_largest_noise_level_is_allowed() -> None:
    assert parse(UPSCALER, init_pixels=INIT, noise_level=350).noise_level == 350
    assert "noise_level is 351" in refusal(UPSCALER, init_pixels=INIT, noise_level=351)


def test_passes_follow_one_another() -> None:
    request = parse(
        WITH_UPSCALER, height=128, width=128, hires_height=192, hires_steps=10, upscale_model="upscaler", noise_level=5
    )
    first, second, third = request.passes()
    assert (first.task, first.height, first.strength) == ("text_to_image", 128, None)
    assert (second.task, second.height, second.strength) == ("image_to_image", 192, 0.7)
    assert (second.num_inference_steps, first.num_inference_steps) == (10, 20)
    assert (third.task, third.model, third.height, third.width) == ("upscaling", "upscaler", 768, 768)
    assert (third.source_height, third.noise_level) == (192, 5)
    assert request.image_size == (768, 768)
    assert all(not one.hires_height and not one.upscale_model for one in request.passes())


def test_listed_levels_are_as_many_steps_in_every_pass() -> None:
    tensors: dict[str, list[object]] = {
        "prompt": ["a heart"],
        "sigmas": [10.0, 5.0, 1.0],
        "hires_height": [192],
        "hires_steps": [10],
    }
    with pytest.raises(InvalidRequest, match="hires_steps is 10, but levels are listed"):
        Request.parse(tensors, LIMITS)
