"""Requests of two passes: the first picture enlarged and drawn on, as diffusers would, or as two requests would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from tests.conftest import EMBEDDED
from tests.drawing import Drawing, scene, window
from tests.pipelines import METHODS, assert_same, draw, oracle

PROMPT = "a purple square left of a green circle on a black background"
SMALL, LARGE = 128, 192
SCALE = 4.0
# Mode and antialiasing of torch's interpolation.
LATENT = {
    "latent": ("bilinear", False),
    "latent_nearest": ("nearest", False),
    "latent_bicubic": ("bicubic", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic_antialiased": ("bicubic", True),
}
PIXEL = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@pytest.fixture(scope="module")
def drawing(embedded_export: Path) -> Iterator[Drawing]:
    config = ServerConfig(model=embedded_export, name="base", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def two_passes(sampler: str, upscaler: str, strength: float, images: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "sampler": sampler,
        "num_inference_steps": 4,
        "guidance_scale": SCALE,
        "seed": 61,
        "num_images": images,
        "height": SMALL,
        "width": SMALL,
        "hires_height": LARGE,
        "hires_width": LARGE,
        "hires_steps": 6,
        "hires_strength": strength,
        "hires_upscaler": upscaler,
        **more,
    }


@pytest.mark.parametrize(
    ("sampler", "upscaler", "strength", "images"),
    [
        ("euler", "latent", 0.7, 2),
        ("euler_ancestral", "latent_bicubic_antialiased", 0.5, 1),
        ("dpmpp_2m", "lanczos", 0.7, 1),
        ("ddim", "nearest", 0.5, 2),
        *(
            pytest.param(sampler, upscaler, 0.6, 2, marks=pytest.mark.slow)
            for upscaler in (*LATENT, *PIXEL)
            for sampler in ("euler", "dpm2_ancestral", "unipc")
        ),
    ],
)
def test_a_second_pass_is_image_to_image_of_the_enlarged_first(
    drawing: Drawing, sampler: str, upscaler: str, strength: float, images: int
) -> None:
    """With a fresh generator of the same seed."""
    seeds = [61 + i for i in range(images)]
    method = METHODS[sampler]
    first = draw(oracle("StableDiffusionPipeline", EMBEDDED, method), PROMPT, seeds, steps=4, scale=SCALE,
                 height=SMALL, width=SMALL)  # fmt: skip
    larger: Any
    if upscaler in LATENT:
        mode, antialias = LATENT[upscaler]
        size = (LARGE // 8, LARGE // 8)
        larger = torch.nn.functional.interpolate(torch.from_numpy(first.latents), size, mode=mode, antialias=antialias)
    else:
        larger = [Image.fromarray(picture).resize((LARGE, LARGE), PIXEL[upscaler]) for picture in first.pictures]
    second = oracle("StableDiffusionImg2ImgPipeline", EMBEDDED, method)
    expected = draw(second, PROMPT, seeds, steps=6, scale=SCALE, image=larger, strength=strength)
    drawn = drawing.one(**two_passes(sampler, upscaler, strength, images))
    assert np.abs(drawn.passes[0] - first.latents[0]).max() <= 1e-3
    assert drawn.pictures[0].shape == (LARGE, LARGE, 3)
    assert_same(drawn, expected)


@pytest.fixture(scope="module")
def upscaling(embedded_export: Path, task_exports: Callable[[str], tuple[Path, Path]]) -> Iterator[Drawing]:
    """An upscaler of 128x128 and 256x256, and what draws for it; the embedded checkpoint's pictures are too large."""
    masked, larger = (task_exports(task)[1] for task in ("inpainting", "upscaling"))
    config = ServerConfig(model=masked, name="masked", more=(("larger", larger),), provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def test_generate_then_upscale_is_one_request_after_the_other(upscaling: Drawing) -> None:
    base = {"prompt": PROMPT, "seed": 71, "num_images": 2, "num_inference_steps": 4}
    whole = upscaling.one(
        "masked", **base, sampler="euler_ancestral", guidance_scale=3.0, height=64, width=64, upscale_model="larger",
        upscale_steps=3, upscale_guidance_scale=5.0, noise_level=100,
    )  # fmt: skip
    small = upscaling.one("masked", **base, sampler="euler_ancestral", guidance_scale=3.0, height=64, width=64)
    assert [len(part) for part in whole.timesteps] == [4, 3]
    for i, picture in enumerate(small.pictures):
        after = {**base, "seed": 71 + i, "num_images": 1, "num_inference_steps": 3}
        alone = upscaling.one(
            "larger", **after, sampler="euler_ancestral", guidance_scale=5.0, init_image=picture, noise_level=100
        )
        assert np.abs(whole.latents[i] - alone.latents[0]).max() <= 1e-3
        assert whole.pictures[i].shape == (256, 256, 3)
        assert np.abs(whole.pictures[i].astype(int) - alone.pictures[0].astype(int)).max() <= 1


def test_what_is_upscaled_is_the_finished_picture(upscaling: Drawing) -> None:
    """With what lies outside its mask put back."""
    painted = {"init_image": scene(64, 64), "mask_image": window(64, 64), "num_inference_steps": 3}
    base = {"prompt": PROMPT, "seed": 72, "sampler": "ddim", "guidance_scale": 1.0}
    whole = upscaling.one("masked", **base, **painted, upscale_model="larger", upscale_steps=2)
    small = upscaling.one("masked", **base, **painted)
    assert np.array_equal(small.pictures[0][0], scene(64, 64)[0])
    alone = upscaling.one("larger", **base, num_inference_steps=2, init_image=small.pictures[0])
    assert np.abs(whole.latents - alone.latents).max() <= 1e-3


def test_passes_of_a_request_keep_its_seed_and_its_prompt(drawing: Drawing) -> None:
    first, second = drawing.request(**two_passes("euler", "latent", 0.7, 1)).passes()
    assert (
        replace(first, height=LARGE, width=LARGE, num_inference_steps=6, strength=0.7, task="image_to_image") == second
    )
