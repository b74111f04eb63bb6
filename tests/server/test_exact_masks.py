"""What a mask leaves alone stays: latents, pixels outside a crop, and the picture that outpainting extends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from server.errors import InvalidRequest
from server.image import Pixels
from server.latents import draw_latent
from server.masks import latent_mask, prepare_mask
from server.noise import TorchGenerator
from server.only_masked import crop_region
from server.resizing import to_network
from server.rows import Array
from tests.conftest import EMBEDDED
from tests.drawing import Drawing, psnr, scene, window
from tests.pipelines import METHODS, oracle

PROMPT = "a red diamond on a pink background"
SIDE = 128
PICTURE, MASK = scene(SIDE, SIDE), window(SIDE, SIDE)
BASE: dict[str, Any] = {
    "prompt": PROMPT,
    "sampler": "euler_ancestral",
    "num_inference_steps": 5,
    "guidance_scale": 3.0,
    "seed": 91,
    "init_image": PICTURE,
}


@pytest.fixture(scope="module")
def drawing(embedded_export: Path) -> Iterator[Drawing]:
    config = ServerConfig(model=embedded_export, name="base", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def encoded(drawing: Drawing, picture: Pixels = PICTURE) -> Array:
    """The picture as this seed draws it."""
    pipeline = drawing.checkpoints["base"]
    moments = pipeline.encode(to_network(picture)[None])[0]
    return draw_latent(moments, TorchGenerator(91), pipeline.spec.scaling_factor)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "heun", "lms", "unipc"])
@pytest.mark.parametrize("content", ["original", "latent_noise", "latent_nothing", "fill"])
def test_unmasked_latents_are_those_of_the_picture_in_the_end(drawing: Drawing, sampler: str, content: str) -> None:
    masked: dict[str, Any] = {"mask_image": MASK, "mask_blur": 0, "masked_content": content, "strength": 0.8}
    fields = {**BASE, "sampler": sampler, "num_inference_steps": 3, "guidance_scale": 1.0}
    (latent,) = drawing.one(**fields, **masked).latents
    kept = latent_mask(MASK, 16, 16)[0] == 0
    expected = encoded(drawing)
    if content != "fill":
        assert np.array_equal(latent[:, kept], expected[:, kept])
    assert np.abs(latent[:, ~kept] - expected[:, ~kept]).max() > 0.1


def test_a_soft_mask_keeps_in_parts(drawing: Drawing) -> None:
    """In the end each latent is the mask's part of what was drawn and the rest of what was there."""
    ramp = np.tile(np.linspace(0, 255, SIDE).astype(np.uint8), (SIDE, 1))
    fields = {**BASE, "mask_image": ramp, "mask_blur": 0, "soft_mask": 1, "strength": 0.8}
    (latent,) = drawing.one(**fields).latents
    difference = np.abs(latent - encoded(drawing)).mean((0, 1))
    assert difference[0] < 0.1 * difference[-1]


@pytest.mark.parametrize("level", [0, 255])
def test_a_mask_of_nothing_or_of_all_is_refused(drawing: Drawing, level: int) -> None:
    request = drawing.request(**BASE, mask_image=np.full((SIDE, SIDE), level, np.uint8))
    with pytest.raises(InvalidRequest, match="mask_image is"):
        drawing.draw(request)


@pytest.mark.parametrize("blur", [0, 4])
def test_pixels_outside_the_mask_are_those_of_the_picture(drawing: Drawing, blur: int) -> None:
    (picture,) = drawing.one(**BASE, mask_image=MASK, mask_blur=blur).pictures
    mask = prepare_mask(MASK, (SIDE, SIDE), blur=blur)
    assert np.array_equal(picture[mask == 0], PICTURE[mask == 0])
    assert not np.array_equal(picture[mask == 255], PICTURE[mask == 255])
    assert (mask == 0).any()


def test_unmasked_pixels_come_through_the_vae_only(drawing: Drawing) -> None:
    """Without putting them back, of a picture such as the VAE was trained on, and away from the seam."""
    drawn_before = drawing.one(prompt=PROMPT, sampler="dpmpp_2m", num_inference_steps=12, seed=4)
    picture, pipeline = drawn_before.pictures[0], drawing.checkpoints["base"]
    fields = {**BASE, "init_image": picture, "prompt": "a blue ring on a pink background"}
    (drawn,) = drawing.one(**fields, mask_image=MASK, mask_blur=0, keep_unmasked=0, strength=0.8).pictures
    (through,) = pipeline.decode(encoded(drawing, picture)[None])
    away = prepare_mask(MASK, (SIDE, SIDE), blur=4) == 0
    assert away.mean() > 0.5
    assert psnr(drawn[away], picture[away]) >= max(30, psnr(through[away], picture[away]) - 2)
    assert psnr(drawn[~away], picture[~away]) < 20


@pytest.mark.parametrize(("padding", "blur"), [(8, 0), (32, 4)])
def test_only_the_surroundings_of_the_mask_are_drawn(drawing: Drawing, padding: int, blur: int) -> None:
    """A small mask of a large picture: the answer has the picture's size, and its pixels outside the crop."""
    picture, mask = scene(230, 301), np.zeros((230, 301), np.uint8)
    mask[150:190, 200:230] = 255
    fields = {**BASE, "init_image": picture, "height": SIDE, "width": SIDE}
    masked: dict[str, Any] = {"mask_image": mask, "mask_blur": blur, "only_masked": 1, "only_masked_padding": padding}
    (drawn,) = drawing.one(**fields, **masked).pictures
    assert drawn.shape == picture.shape
    used = prepare_mask(mask, (230, 301), blur=blur)
    left, top, right, bottom = crop_region(used, padding, SIDE, SIDE)
    assert right - left < 150
    outside = np.ones(mask.shape, bool)
    outside[top:bottom, left:right] = False
    assert np.array_equal(drawn[outside], picture[outside])
    assert np.array_equal(drawn[used == 0], picture[used == 0])
    assert np.abs(drawn[mask == 255].astype(int) - picture[mask == 255]).mean() > 1


def test_only_masked_equals_diffusers(drawing: Drawing) -> None:
    """Its `padding_mask_crop`."""
    picture, mask = scene(200, 260), np.zeros((200, 260), np.uint8)
    mask[60:110, 90:170] = 255
    fields = {**BASE, "sampler": "euler", "init_image": picture, "height": SIDE, "width": SIDE, "strength": 0.8}
    (drawn,) = drawing.one(**fields, mask_image=mask, mask_blur=0, only_masked=1, only_masked_padding=16).pictures
    pipeline = oracle("StableDiffusionInpaintPipeline", EMBEDDED, METHODS["euler"])
    (expected,) = pipeline(
        PROMPT, image=Image.fromarray(picture), mask_image=Image.fromarray(mask), padding_mask_crop=16, height=SIDE,
        width=SIDE, num_inference_steps=5, guidance_scale=3.0, strength=0.8,
        generator=[torch.Generator().manual_seed(91)],
    ).images  # fmt: skip
    assert psnr(drawn, np.asarray(expected)) >= 45


@pytest.mark.parametrize("fill", ["edge", "mirror", "grey", "noise"])
def test_outpainting_keeps_the_picture(drawing: Drawing, fill: str) -> None:
    """All of it but the feather, bit for bit; the answer is as much larger as was asked."""
    picture, feather = scene(96, 128), 8
    fields = {**BASE, "num_inference_steps": 3, "init_image": picture, "extend_fill": fill, "feather": feather}
    drawn = drawing.one(**fields, extend_top=64, extend_bottom=32, extend_left=64).pictures[0]
    assert drawn.shape == (96 + 64 + 32, 128 + 64, 3)
    inner = (slice(feather, 96 - feather), slice(feather, 128))
    assert np.array_equal(drawn[64:160, 64:192][inner], picture[inner])
    assert drawn[:64].std() > 0


def test_outpainting_is_inpainting_of_the_extended_picture(drawing: Drawing) -> None:
    picture = scene(128, 64)
    fields = {**BASE, "num_inference_steps": 3}
    extended = drawing.one(**{**fields, "init_image": picture}, extend_right=64, feather=0)
    canvas = np.pad(picture, ((0, 0), (0, 64), (0, 0)), mode="edge")
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 255
    painted = drawing.one(**{**fields, "init_image": canvas}, mask_image=mask, mask_blur=0)
    assert np.array_equal(extended.latents, painted.latents)
    assert np.array_equal(extended.pictures[0], painted.pictures[0])
