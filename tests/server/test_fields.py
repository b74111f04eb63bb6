"""server.fields: the tensors of a request, which are also the configuration of the models."""

from typing import Any

import pytest

from server.errors import InvalidRequest
from server.fields import ARRAY_OF, FIELD_BY_NAME, FIELDS, unknown_field
from server.request import Limits, Request

MAX_SEED = 2**63 - 1
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
    "strength": (0, 1),
    "mask_blur": (0, 64),
    "mask_invert": (0, 1),
    "soft_mask": (0, 1),
    "only_masked": (0, 1),
    "only_masked_padding": (0, 1024),
    "keep_unmasked": (0, 1),
    "extend_left": (0, 4096),
    "extend_right": (0, 4096),
    "extend_top": (0, 4096),
    "extend_bottom": (0, 4096),
    "feather": (0, 256),
    "depth_invert": (0, 1),
    "noise_level": (0, 350),
    "hires_height": (1, 16384),
    "hires_width": (1, 16384),
    "hires_strength": (0, 1),
    "hires_steps": (0, 500),
    "upscale_steps": (0, 500),
    "upscale_guidance_scale": (0, 100),
    "priority": (-10, 10),
    "timeout_ms": (0, 86_400_000),
    "progress_interval": (0, 500),
    "preview_interval": (0, 500),
    "stream_images": (0, 1),
    "partial_result": (0, 1),
}


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        Request.parse({"prompt": ["a"], **fields}, Limits(((512, 512),)))
    return str(caught.value)


def test_every_number_has_bounds() -> None:
    numbers = [field for field in FIELDS if field.datatype in ("INT64", "FP32") and not field.dims]
    assert {field.name: (field.low, field.high) for field in numbers} == BOUNDS


def test_only_the_lists_of_levels_take_many_values_and_only_pictures_are_arrays() -> None:
    shapes = {field.name: field.shape for field in FIELDS if field.shape != "[1]"}
    assert shapes == {
        "sigmas": "[n]",
        "timesteps": "[n]",
        "init_pixels": "[height, width, channels]",
        "mask_pixels": "[height, width]",
        "depth_map": "[height, width]",
    }


def test_every_picture_may_come_as_a_file_or_as_an_array() -> None:
    assert set(ARRAY_OF) == {field.name for field in FIELDS if field.picture}
    assert set(ARRAY_OF.values()) == {field.name for field in FIELDS if field.dims}
    types = {name: FIELD_BY_NAME[name].datatype for name in (*ARRAY_OF, *ARRAY_OF.values())}
    files, pixels = dict.fromkeys(ARRAY_OF, "STRING"), {"init_pixels": "UINT8", "mask_pixels": "UINT8"}
    assert types == {**files, **pixels, "depth_map": "FP32"}


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_default_is_a_value_that_may_be_sent(field: Any) -> None:
    if field.default is None:
        return
    if field.datatype == "STRING":
        assert field.default == "" or field.default in field.choices or not field.choices
    else:
        assert field.low <= field.default <= field.high


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("promt", "prompt"),
        ("num_steps", "num_inference_steps"),
        ("guidance", "guidance_scale"),
        ("samplers", "sampler"),
        ("init_img", "init_image"),
        ("mask", "mask_blur"),
        ("denoising_strength", "hires_strength"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest_one(name: str, meant: str) -> None:
    text = refusal(**{name: [1]})
    assert all(part in text for part in (repr(name), "not a field", repr(meant)))


def test_an_unknown_field_like_no_other_is_answered_with_all_fields() -> None:
    assert all(field.name in unknown_field("zzzzzz") for field in FIELDS)
