"""Image-to-image, and inpainting with a UNet that knows no mask: what diffusers draws with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from tests.conftest import EMBEDDED
from tests.drawing import Drawing, scene, window
from tests.pipelines import METHODS, Expected, assert_same, draw, oracle

PROMPT = "a white heart on a green background"
SIDE = 128
# Larger than what is drawn and of another shape, so that it is resized.
PICTURE, MASK = scene(140, 200), window(140, 200)
# Sampler, steps, strength, guidance scale, images.
CASES = [
    ("euler", 8, 0.75, 4.0, 2),
    ("ddim", 10, 0.35, 1.0, 1),
    ("dpmpp_2m", 8, 0.75, 1.0, 1),
    ("dpmpp_2m", 10, 0.35, 5.0, 1),
    ("euler_ancestral", 8, 0.6, 5.0, 2),
    ("heun", 6, 0.5, 3.0, 1),
    ("dpm2", 5, 0.6, 1.0, 1),
]
# More guidance enlarges what diffusers rounds: it has the levels of `dpm2_ancestral` in float32.
WIDE = [
    (sampler, 10, strength, scale, 2)
    for sampler, strength, scale in product(METHODS, (0.3, 0.8, 1.0), (1.0, 4.0))
    if (sampler, 10, strength, scale, 2) not in CASES
]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in WIDE]


@pytest.fixture(scope="module")
def drawing(embedded_export: Path) -> Iterator[Drawing]:
    config = ServerConfig(model=embedded_export, name="base", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def seeds(images: int) -> list[int]:
    return [21 + i for i in range(images)]


def fields(sampler: str, steps: int, strength: float, scale: float, images: int) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "sampler": sampler,
        "num_inference_steps": steps,
        "guidance_scale": scale,
        "strength": strength,
        "seed": seeds(images)[0],
        "num_images": images,
        "init_image": PICTURE,
        "height": SIDE,
        "width": SIDE,
    }


def from_picture(sampler: str, steps: int, strength: float, scale: float, images: int, **options: Any) -> Expected:
    """diffusers' image-to-image on what its own resizing would make of the picture."""
    pipeline = oracle("StableDiffusionImg2ImgPipeline", EMBEDDED, METHODS[sampler], **options)
    resized = Image.fromarray(PICTURE).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return draw(pipeline, PROMPT, seeds(images), steps=steps, scale=scale, image=resized, strength=strength)


def inpainted(sampler: str, steps: int, strength: float, scale: float, images: int, **options: Any) -> Expected:
    pipeline = oracle("StableDiffusionInpaintPipeline", EMBEDDED, METHODS[sampler], **options)
    pictures = {"image": Image.fromarray(PICTURE), "mask_image": Image.fromarray(MASK)}
    sizes = {"height": SIDE, "width": SIDE}
    return draw(pipeline, PROMPT, seeds(images), steps=steps, scale=scale, strength=strength, **pictures, **sizes)


@pytest.mark.parametrize(("sampler", "steps", "strength", "scale", "images"), [*CASES, *SLOW])
def test_image_to_image_equals_diffusers(
    drawing: Drawing, sampler: str, steps: int, strength: float, scale: float, images: int
) -> None:
    drawn = drawing.one(**fields(sampler, steps, strength, scale, images))
    assert_same(drawn, from_picture(sampler, steps, strength, scale, images))


@pytest.mark.parametrize(
    ("sampler", "steps", "strength", "scale", "images"),
    [("euler", 6, 1.0, 4.0, 1), *CASES[1:-1], *(case for case in SLOW if case.values[0] != "dpm2")],
)
def test_inpainting_without_a_mask_channel_equals_diffusers(
    drawing: Drawing, sampler: str, steps: int, strength: float, scale: float, images: int
) -> None:
    """Of `dpm2`, see `test_exact_defects`."""
    drawn = drawing.one(
        **fields(sampler, steps, strength, scale, images), mask_image=MASK, mask_blur=0, keep_unmasked=0
    )
    assert_same(drawn, inpainted(sampler, steps, strength, scale, images))


def test_every_image_of_a_request_is_what_its_seed_draws_alone(drawing: Drawing) -> None:
    together = drawing.one(**fields("euler_ancestral", 6, 0.7, 3.0, 3))
    for i, seed in enumerate(seeds(3)):
        alone = drawing.one(**{**fields("euler_ancestral", 6, 0.7, 3.0, 1), "seed": seed})
        assert np.abs(together.latents[i] - alone.latents[0]).max() <= 1e-3


def test_pictures_of_one_shape_are_resized_as_diffusers_resizes_them(drawing: Drawing) -> None:
    """And a picture of the size that is drawn is not."""
    same = {**fields("ddim", 6, 0.5, 1.0, 1), "init_image": scene(SIDE, SIDE)}
    pipeline = oracle("StableDiffusionImg2ImgPipeline", EMBEDDED, METHODS["ddim"])
    expected = draw(
        pipeline, PROMPT, seeds(1), steps=6, scale=1.0, image=Image.fromarray(scene(SIDE, SIDE)), strength=0.5
    )
    assert_same(drawing.one(**same), expected)
