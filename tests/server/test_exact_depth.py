"""Depth-to-image: what diffusers' pipeline draws with the same weights, and depth maps of clients."""

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
from tests.drawing import Drawing, Recording, psnr, scene
from tests.pipelines import METHODS, Expected, assert_same, calls, draw, oracle

PROMPT = "a green star on a red background"
HEIGHT, WIDTH = 64, 128
PICTURE = scene(HEIGHT, WIDTH)
# Not of the picture's size, and not of one scale with anything.
DEPTH = (np.hypot(*np.mgrid[-3:3:40j, -2:4:70j]) * 11 - 5).astype(np.float32)
CASES = [
    ("euler", 8, 0.75, 4.0, 2, False),
    ("ddim", 8, 0.35, 1.0, 2, True),
    ("dpmpp_2m", 8, 0.75, 5.0, 1, False),
    ("euler_ancestral", 8, 0.6, 5.0, 2, True),
    ("heun", 6, 0.5, 1.0, 1, False),
]
WIDE = product(METHODS, (10,), (0.3, 0.8, 1.0), (1.0, 6.0), (2,), (False, True))
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in WIDE]


@pytest.fixture(scope="module")
def checkpoint(task_exports: Callable[[str], tuple[Path, Path]]) -> Path:
    return task_exports("depth")[0]


@pytest.fixture(scope="module")
def drawing(task_exports: Callable[[str], tuple[Path, Path]]) -> Iterator[Drawing]:
    config = ServerConfig(model=task_exports("depth")[1], name="deep", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def fields(sampler: str, steps: int, strength: float | None, scale: float, images: int) -> dict[str, Any]:
    found = {"prompt": PROMPT, "sampler": sampler, "num_inference_steps": steps, "guidance_scale": scale}
    found |= {"seed": 41, "num_images": images, "height": HEIGHT, "width": WIDTH}
    return found if strength is None else {**found, "init_image": PICTURE, "strength": strength}


def expected_of(
    checkpoint: Path, sampler: str, steps: int, strength: float, scale: float, images: int, mapped: bool
) -> Expected:
    pipeline = oracle("StableDiffusionDepth2ImgPipeline", checkpoint, METHODS[sampler])
    options: dict[str, Any] = {"image": Image.fromarray(PICTURE), "strength": strength}
    if mapped:
        options["depth_map"] = torch.from_numpy(DEPTH)[None].repeat(images, 1, 1)
    seeds = [41 + i for i in range(images)]
    return draw(pipeline, PROMPT, seeds, steps=steps, scale=scale, **options)


@pytest.mark.parametrize(("sampler", "steps", "strength", "scale", "images", "mapped"), [*CASES, *SLOW])
def test_depth_to_image_equals_diffusers(
    drawing: Drawing,
    checkpoint: Path,
    sampler: str,
    steps: int,
    strength: float,
    scale: float,
    images: int,
    mapped: bool,
) -> None:
    given = {"depth_map": DEPTH} if mapped else {}
    drawn = drawing.one(**fields(sampler, steps, strength, scale, images), **given)
    assert len(drawn.timesteps[0]) == calls(sampler, steps, strength)
    assert_same(drawn, expected_of(checkpoint, sampler, steps, strength, scale, images, mapped))


def test_the_depth_of_the_picture_shows(drawing: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the fifth channel, from -1 to 1, not scaled, the same for both rows and all calls."""
    pipeline = drawing.checkpoints["deep"]
    recording = Recording(pipeline.runners["unet"])
    monkeypatch.setitem(pipeline.runners, "unet", recording)
    drawn = drawing.one(**fields("euler", 4, 1.0, 4.0, 1))
    channels = [row[4] for feeds in recording.feeds for row in feeds["sample"]]
    assert len(channels) == 8
    assert all(np.array_equal(channels[0], channel) for channel in channels)
    assert (channels[0].min(), channels[0].max()) == (-1, 1)
    mapped = drawing.one(**fields("euler", 4, 1.0, 4.0, 1), depth_map=DEPTH)
    assert np.abs(drawn.latents - mapped.latents).max() > 0.05


@pytest.mark.parametrize(("factor", "offset"), [(2.0, 0.0), (0.3, 40.0), (1000.0, -7.0)])
def test_the_scale_of_a_depth_map_does_not_matter(drawing: Drawing, factor: float, offset: float) -> None:
    base = fields("ddim", 4, 0.75, 4.0, 1)
    plain = drawing.one(**base, depth_map=DEPTH)
    scaled = drawing.one(**base, depth_map=DEPTH * np.float32(factor) + np.float32(offset))
    assert np.abs(plain.latents - scaled.latents).max() <= 1e-3
    assert psnr(plain.pictures[0], scaled.pictures[0]) >= 60


def test_an_inverted_depth_map_is_the_negative_one(drawing: Drawing) -> None:
    base = fields("ddim", 4, 0.75, 4.0, 1)
    inverted = drawing.one(**base, depth_map=DEPTH, depth_invert=1).latents
    np.testing.assert_allclose(inverted, drawing.one(**base, depth_map=-DEPTH).latents, atol=1e-3)
    assert np.abs(inverted - drawing.one(**base, depth_map=DEPTH).latents).max() > 0.01


@pytest.mark.parametrize("level", [0.0, -3.5, 1e6])
def test_a_constant_depth_map_gives_a_picture(drawing: Drawing, level: float) -> None:
    """diffusers divides by nothing here, and draws NaN."""
    flat = np.full((20, 30), level, np.float32)
    drawn = drawing.one(**fields("euler", 3, 0.75, 4.0, 1), depth_map=flat)
    assert np.isfinite(drawn.latents).all()


def test_a_depth_map_without_a_picture_begins_with_noise(drawing: Drawing) -> None:
    drawn = drawing.one(**fields("euler", 5, None, 1.0, 1), depth_map=DEPTH)
    assert len(drawn.timesteps[0]) == 5
    assert np.isfinite(drawn.latents).all()
