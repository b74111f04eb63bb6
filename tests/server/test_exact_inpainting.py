"""Inpainting with a UNet that takes a mask: what diffusers' pipeline draws with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from server.latents import draw_latent
from server.masks import latent_mask, masked_picture
from server.noise import TorchGenerator
from server.resizing import resize, to_network
from tests.drawing import Drawing, Recording, scene, window
from tests.pipelines import METHODS, Expected, assert_same, calls, draw, oracle

PROMPT = "a blue ring on a white background"
HEIGHT, WIDTH = 64, 128
PICTURE, MASK = scene(80, 150), window(80, 150)
CASES = [
    ("euler", 8, 1.0, 4.0, 2),
    ("ddim", 8, 0.5, 1.0, 2),
    ("dpmpp_2m", 10, 0.35, 5.0, 1),
    ("euler_ancestral", 8, 1.0, 1.0, 2),
    ("euler_ancestral", 8, 0.6, 5.0, 2),
    ("heun", 6, 0.5, 3.0, 1),
    ("dpm2", 5, 1.0, 1.0, 1),
]
# More guidance enlarges what diffusers rounds: it has the levels of `dpm2_ancestral` in float32.
WIDE = product(METHODS, (10,), (0.3, 0.8, 1.0), (1.0, 4.0), (2,))
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in WIDE]


@pytest.fixture(scope="module")
def checkpoint(task_exports: Callable[[str], tuple[Path, Path]]) -> Path:
    return task_exports("inpainting")[0]


@pytest.fixture(scope="module")
def drawing(task_exports: Callable[[str], tuple[Path, Path]]) -> Iterator[Drawing]:
    config = ServerConfig(model=task_exports("inpainting")[1], name="masked", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def fields(sampler: str, steps: int, strength: float | None, scale: float, images: int) -> dict[str, Any]:
    found = {"prompt": PROMPT, "sampler": sampler, "num_inference_steps": steps, "guidance_scale": scale}
    found |= {"seed": 31, "num_images": images, "height": HEIGHT, "width": WIDTH}
    return found if strength is None else {**found, "strength": strength}


def masked(**changes: Any) -> dict[str, Any]:
    return {"init_image": PICTURE, "mask_image": MASK, "mask_blur": 0, "keep_unmasked": 0, **changes}


def inpainted(
    checkpoint: Path, sampler: str, steps: int, strength: float, scale: float, images: int, **pictures: Any
) -> Expected:
    pipeline = oracle("StableDiffusionInpaintPipeline", checkpoint, METHODS[sampler])
    pictures = {"image": Image.fromarray(PICTURE), "mask_image": Image.fromarray(MASK), **pictures}
    seeds = [31 + i for i in range(images)]
    sizes = {"height": HEIGHT, "width": WIDTH}
    return draw(pipeline, PROMPT, seeds, steps=steps, scale=scale, strength=strength, **pictures, **sizes)


@pytest.mark.parametrize(("sampler", "steps", "strength", "scale", "images"), [*CASES, *SLOW])
def test_inpainting_equals_diffusers(
    drawing: Drawing, checkpoint: Path, sampler: str, steps: int, strength: float, scale: float, images: int
) -> None:
    drawn = drawing.one(**fields(sampler, steps, strength, scale, images), **masked())
    assert len(drawn.timesteps[0]) == calls(sampler, steps, strength)
    assert_same(drawn, inpainted(checkpoint, sampler, steps, strength, scale, images))


def test_without_a_picture_all_of_it_is_masked(drawing: Drawing, checkpoint: Path) -> None:
    """Semantics of a UNet that takes a mask and is asked for a whole picture."""
    grey = torch.zeros(1, 3, HEIGHT, WIDTH)
    white = Image.new("L", (WIDTH, HEIGHT), 255)
    expected = inpainted(checkpoint, "euler", 6, 1.0, 4.0, 1, image=grey, mask_image=white)
    assert_same(drawing.one(**fields("euler", 6, None, 4.0, 1)), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_picture_without_a_mask_is_image_to_image_with_all_masked(
    drawing: Drawing, checkpoint: Path, strength: float
) -> None:
    white = Image.new("L", (PICTURE.shape[1], PICTURE.shape[0]), 255)
    expected = inpainted(checkpoint, "euler_ancestral", 5, strength, 4.0, 1, mask_image=white)
    drawn = drawing.one(**fields("euler_ancestral", 5, strength, 4.0, 1), init_image=PICTURE)
    assert_same(drawn, expected)


@pytest.mark.parametrize("guided", [False, True])
def test_the_unet_is_fed_the_latent_then_the_mask_then_the_masked_picture(
    drawing: Drawing, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    """Only the latent is scaled; both rows of a guided image have the same mask and picture."""
    pipeline = drawing.checkpoints["masked"]
    recording = Recording(pipeline.runners["unet"])
    monkeypatch.setitem(pipeline.runners, "unet", recording)
    request = drawing.request(**fields("euler", 4, 1.0, 4.0 if guided else 1.0, 1), **masked())
    drawing.draw(request)
    generator = TorchGenerator(31)
    first = generator.normal((4, HEIGHT // 8, WIDTH // 8))
    table = pipeline.table(request)
    picture, mask = resize(PICTURE, HEIGHT, WIDTH), resize(MASK, HEIGHT, WIDTH)
    moments = pipeline.encode(masked_picture(to_network(picture), mask)[None])[0]
    known = draw_latent(moments, generator, pipeline.spec.scaling_factor)
    assert len(recording.feeds) == 4
    for feeds in recording.feeds:
        assert feeds["sample"].shape == (1 + guided, 9, HEIGHT // 8, WIDTH // 8)
        for row in feeds["sample"]:
            assert np.array_equal(row[4], latent_mask(mask, HEIGHT // 8, WIDTH // 8)[0])
            assert np.array_equal(row[5:], known)
    scaled = first * np.float32(table.initial_scale) * table.lines[0, 1]
    assert table.lines[0, 1] < 0.5
    np.testing.assert_allclose(recording.feeds[0]["sample"][0, :4], scaled, rtol=1e-6, atol=1e-6)


def test_the_mask_and_what_lies_under_it_show(drawing: Drawing) -> None:
    """Else it would go unseen that neither side heeds them."""
    base = fields("ddim", 4, 1.0, 1.0, 1)
    drawn = drawing.one(**base, **masked()).latents
    other_mask = drawing.one(**base, **masked(mask_invert=1)).latents
    other_picture = drawing.one(**base, **masked(init_image=PICTURE[::-1].copy())).latents
    assert min(np.abs(drawn - other).max() for other in (other_mask, other_picture)) > 0.05


def test_what_lies_under_the_mask_does_not_show_at_full_strength(drawing: Drawing) -> None:
    # Pictures of the size that is drawn are not mixed with their surroundings.
    base = fields("ddim", 3, 1.0, 1.0, 1)
    size = {"mask_image": window(HEIGHT, WIDTH)}
    picture, inside = scene(HEIGHT, WIDTH), window(HEIGHT, WIDTH)[..., None] > 0
    hidden = np.where(inside, 255 - picture, picture)
    one, other = (drawing.one(**base, **masked(init_image=shown, **size)).latents for shown in (picture, hidden))
    assert np.array_equal(one, other)


def test_pixels_outside_the_mask_are_kept(drawing: Drawing) -> None:
    picture, mask = scene(HEIGHT, WIDTH), window(HEIGHT, WIDTH)
    given = {"init_image": picture, "mask_image": mask}
    (kept,) = drawing.one(**fields("ddim", 3, 1.0, 1.0, 1), **masked(keep_unmasked=1, **given)).pictures
    (whole,) = drawing.one(**fields("ddim", 3, 1.0, 1.0, 1), **masked(**given)).pictures
    assert np.array_equal(kept[mask == 0], picture[mask == 0])
    assert np.array_equal(kept[mask == 255], whole[mask == 255])
    assert not np.array_equal(whole[mask == 0], picture[mask == 0])
