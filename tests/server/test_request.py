"""server.request: what a client asks as a whole, which is kept and can be sent again."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from server.attachments import Picture
from server.errors import InvalidRequest
from server.fields import ARRAY_OF, FIELD_BY_NAME, FIELDS, Raster
from server.request import RANDOM_SEED_LIMIT, Limits, Request, cancelled_id, chosen_model

LIMITS = Limits(((512, 512), (768, 512), (512, 768)), sampler="ddim", model="here", max_images=8)
DEPTH = replace(LIMITS, task="depth", estimates_depth=True)
UPSCALER = replace(LIMITS, task="upscaling", enlarges=4)
ENLARGING = replace(LIMITS, upscalers={"x4": ((3072, 2048),)})
# (height, width) in pixels of every file of these tests.
FILE = (384, 384)


def size(name: str, picture: Picture) -> tuple[int, int]:
    return FILE if isinstance(picture, bytes) else (picture.shape[0], picture.shape[1])


def parse(limits: Limits = LIMITS, /, **fields: Any) -> Request:
    return Request.parse({"prompt": [b"a red circle"], **fields}, limits, size)


def tensors(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """As a client sends them."""
    return {name: list(value) if isinstance(value, tuple) else [value] for name, value in values.items()}


def test_a_prompt_is_enough() -> None:
    request = parse()
    assert 0 <= request.seed < RANDOM_SEED_LIMIT
    assert request == Request(
        prompt="a red circle",
        negative_prompt="",
        model="here",
        height=512,
        width=512,
        num_inference_steps=20,
        guidance_scale=7.5,
        seed=request.seed,
        num_images=1,
        sampler="ddim",
        schedule=None,
        timestep_spacing=None,
        final_sigma=None,
        rho=None,
        sigmas=(),
        timesteps=(),
        eta=None,
        solver_order=None,
        guidance_rescale=0.0,
        guidance_start=0.0,
        guidance_end=1.0,
        prompt_syntax="none",
        clip_skip=0,
        noise_source="cpu",
        subseed=0,
        subseed_strength=0.0,
        noise_seed_delta=0,
        init_image=None,
        strength=None,
        resize_mode="stretch",
        mask_image=None,
        mask_blur=4,
        mask_invert=0,
        masked_content="original",
        soft_mask=0,
        only_masked=0,
        only_masked_padding=32,
        keep_unmasked=1,
        extend_left=0,
        extend_right=0,
        extend_top=0,
        extend_bottom=0,
        extend_fill="edge",
        feather=8,
        depth_image=None,
        depth_invert=0,
        noise_level=20,
        hires_height=0,
        hires_width=0,
        hires_strength=0.7,
        hires_steps=0,
        hires_upscaler="latent",
        upscale_model="",
        upscale_steps=0,
        upscale_guidance_scale=None,
        output_format="png",
        encoding="binary",
        priority=0,
        timeout_ms=0,
        progress_interval=0,
        preview_interval=0,
        stream_images=0,
        partial_result=0,
        client_id="",
        request_id="",
        task="text_to_image",
        source_height=0,
        source_width=0,
    )


EVERYTHING: dict[str, Any] = {
    "prompt": "ein Kreis, größer",
    "negative_prompt": "Wörter",
    "model": "here",
    "height": 768,
    "width": 512,
    "num_inference_steps": 33,
    "guidance_scale": 4.25,
    "seed": 123456789012,
    "num_images": 3,
    "sampler": "euler_ancestral",
    "schedule": "karras",
    "timestep_spacing": "trailing",
    "final_sigma": "sigma_min",
    "rho": 6.5,
    "eta": 0.5,
    "guidance_rescale": 0.75,
    "guidance_start": 0.25,
    "guidance_end": 0.875,
    "prompt_syntax": "compel",
    "clip_skip": 2,
    "noise_source": "philox",
    "subseed": 210987654321,
    "subseed_strength": 0.125,
    "noise_seed_delta": 31337,
    "output_format": "webp",
    "encoding": "base64",
    "priority": -3,
    "timeout_ms": 60_000,
    "progress_interval": 5,
    "preview_interval": 7,
    "stream_images": 1,
    "partial_result": 1,
    "client_id": "gallery",
    "request_id": "gallery-17",
}
# What cannot be asked together with all of the above, each on a checkpoint that does it.
FURTHER: dict[str, tuple[Limits, dict[str, Any]]] = {
    "sigmas": (LIMITS, {"sampler": "lms", "solver_order": 3, "sigmas": (14.5, 3.0, 0.25)}),
    "timesteps": (LIMITS, {"sampler": "ddim", "timesteps": (901.0, 500.5, 1.0)}),
    "inpainting": (
        LIMITS,
        {
            "init_image": b"a file",
            "mask_image": b"another file",
            "strength": 0.375,
            "resize_mode": "crop",
            "mask_blur": 0,
            "mask_invert": 1,
            "masked_content": "latent_noise",
            "soft_mask": 1,
            "only_masked": 1,
            "only_masked_padding": 64,
        },
    ),
    "outpainting": (
        LIMITS,
        {
            "init_pixels": Raster((384, 320, 3), b"pixels"),
            "extend_left": 64,
            "extend_right": 128,
            "extend_top": 32,
            "extend_bottom": 96,
            "extend_fill": "mirror",
            "feather": 0,
            "keep_unmasked": 0,
        },
    ),
    "arrays": (
        LIMITS,
        {"init_pixels": Raster((64, 64), b"pixels"), "mask_pixels": Raster((64, 64), b"a mask")},
    ),
    "depth": (DEPTH, {"depth_image": b"a file", "depth_invert": 1}),
    "depth_map": (DEPTH, {"depth_map": Raster((12, 16), b"near and far")}),
    "upscaling": (UPSCALER, {"init_image": b"a file", "noise_level": 100}),
    "passes": (
        ENLARGING,
        {
            "hires_height": 768,
            "hires_width": 512,
            "hires_strength": 0.625,
            "hires_steps": 11,
            "hires_upscaler": "lanczos",
            "upscale_model": "x4",
            "upscale_steps": 12,
            "upscale_guidance_scale": 2.5,
        },
    ),
}
ASKED = {"most": (LIMITS, EVERYTHING), **FURTHER}
NAMES = {array: picture for picture, array in ARRAY_OF.items()}


@pytest.mark.parametrize(("limits", "asked"), ASKED.values(), ids=ASKED)
def test_everything_that_was_asked_is_kept(limits: Limits, asked: dict[str, Any]) -> None:
    request = parse(limits, **tensors(asked))
    assert {name: getattr(request, NAMES.get(name, name)) for name in asked} == asked
    assert all(type(getattr(request, NAMES.get(name, name))) is type(asked[name]) for name in asked)


def test_everything_is_all_fields_and_no_default() -> None:
    asked = {name: value for _, part in FURTHER.values() for name, value in part.items()} | EVERYTHING
    assert set(asked) == {field.name for field in FIELDS}
    assert [field.name for field in FIELDS if asked[field.name] == field.default] == []


@pytest.mark.parametrize(("limits", "asked"), ASKED.values(), ids=ASKED)
def test_a_request_can_be_sent_again_as_it_was_understood(limits: Limits, asked: dict[str, Any]) -> None:
    """What metadata shows of it, with the pictures in place of what is said of them."""
    request = parse(limits, **tensors(asked))
    pictures = {name: value for name, value in asked.items() if FIELD_BY_NAME[name].picture or FIELD_BY_NAME[name].dims}
    shown = request.shown()
    assert {name for name in shown if isinstance(shown[name], dict)} == {NAMES.get(name, name) for name in pictures}
    told = {name: value for name, value in shown.items() if not isinstance(value, dict)}
    assert parse(limits, **tensors(told | pictures)) == request


def test_pictures_are_shown_by_their_size_and_hash() -> None:
    request = parse(init_pixels=[Raster((1, 3), b"abc")])
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert request.shown()["init_image"] == {"bytes": 3, "sha256": digest}


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        parse().seed = 3  # type: ignore[misc]


def test_a_label_can_be_sent_again_as_it_was_understood() -> None:
    first = parse(sampler=["DPM++ 2M Karras"], height=[768], subseed_strength=[0.5])
    assert (first.sampler, first.schedule) == ("dpmpp_2m", "karras")
    assert parse(**tensors(first.shown())) == first


@pytest.mark.parametrize("name", ["seed", "subseed"])
def test_absent_seeds_differ_between_requests(name: str) -> None:
    assert len({getattr(parse(subseed_strength=[0.5]), name) for _ in range(20)}) > 15


def test_the_default_sampler_is_the_checkpoints() -> None:
    assert parse(Limits(((8, 8),), sampler="euler_ancestral")).sampler == "euler_ancestral"
    assert parse(Limits(((8, 8),))).sampler == "euler"


@pytest.mark.parametrize("name", ARRAY_OF)
def test_a_picture_comes_in_one_way_only(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"both {name} and {ARRAY_OF[name]} came; send one of them"):
        parse(**{name: [b"a file"], ARRAY_OF[name]: [Raster((2, 2), b"four")]})


def test_pictures_are_refused_where_none_are_read() -> None:
    with pytest.raises(InvalidRequest, match="init_image came, but this server reads no pictures; leave it out"):
        Request.parse({"prompt": ["a"], "init_image": [b"a file"]}, LIMITS)


def test_what_a_picture_is_no_file_of_is_said_before_the_request_is_let_in() -> None:
    def wrong(name: str, picture: Picture) -> tuple[int, int]:
        raise InvalidRequest(f"{name} is no picture")

    with pytest.raises(InvalidRequest, match="init_image is no picture"):
        Request.parse({"prompt": ["a"], "init_image": [b"a file"]}, LIMITS, wrong)


def test_the_model_is_one_of_those_that_are_loaded_the_first_by_default() -> None:
    names = ("one", "two")
    assert [chosen_model(asked, names) for asked in ({}, {"model": [""]}, {"model": [b"two"]})] == ["one", "one", "two"]
    with pytest.raises(InvalidRequest, match="model is 'three'; this server has one, two: send one of these"):
        chosen_model({"model": ["three"]}, names)
    with pytest.raises(InvalidRequest, match="model has 2 values"):
        chosen_model({"model": ["one", "two"]}, names)


def test_an_id_to_cancel_is_sent_alone() -> None:
    assert cancelled_id({"cancel": [b"x"]}) == "x"
    for sent in ({"cancel": ["x"], "prompt": ["a"]}, {"cancel": [""]}, {"cancel": [3]}, {"cancel": ["x", "y"]}):
        with pytest.raises(InvalidRequest, match="cancel "):
            cancelled_id(sent)
