"""The x4 upscaler: what diffusers' pipeline draws with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from server.errors import InvalidRequest
from server.noise import Noise, TorchGenerator
from server.resizing import to_network
from tests.drawing import Drawing, Recording, scene
from tests.pipelines import METHODS, Expected, assert_same, calls, draw, oracle

PROMPT = "an orange cross on a black background"
PICTURE = scene(32, 64)
CASES = [
    ("euler", 6, 20, 4.0, 2),
    ("ddim", 6, 100, 1.0, 2),
    ("dpmpp_2m", 6, 20, 9.0, 1),
    ("euler_ancestral", 6, 0, 5.0, 2),
    ("heun", 4, 350, 1.0, 1),
]
# At guidance 6, a part in a million of the levels between, which diffusers has in float32, moves the latents that it
# draws by `dpm2_ancestral` by 0.013.
WIDE = [
    case
    for case in product(METHODS, (10,), (0, 20, 350), (1.0, 6.0), (2,))
    if (case[0], case[3]) != ("dpm2_ancestral", 6.0)
]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in WIDE]


@pytest.fixture(scope="module")
def checkpoint(task_exports: Callable[[str], tuple[Path, Path]]) -> Path:
    return task_exports("upscaling")[0]


@pytest.fixture(scope="module")
def drawing(task_exports: Callable[[str], tuple[Path, Path]]) -> Iterator[Drawing]:
    config = ServerConfig(model=task_exports("upscaling")[1], name="larger", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def fields(sampler: str, steps: int, level: int, scale: float, images: int) -> dict[str, Any]:
    found = {"prompt": PROMPT, "sampler": sampler, "num_inference_steps": steps, "guidance_scale": scale}
    return found | {"seed": 51, "num_images": images, "noise_level": level, "init_image": PICTURE}


def expected_of(checkpoint: Path, sampler: str, steps: int, level: int, scale: float, images: int) -> Expected:
    pipeline = oracle("StableDiffusionUpscalePipeline", checkpoint, METHODS[sampler])
    seeds = [51 + i for i in range(images)]
    return draw(pipeline, PROMPT, seeds, steps=steps, scale=scale, image=Image.fromarray(PICTURE), noise_level=level)


@pytest.mark.parametrize(("sampler", "steps", "level", "scale", "images"), [*CASES, *SLOW])
def test_upscaling_equals_diffusers(
    drawing: Drawing, checkpoint: Path, sampler: str, steps: int, level: int, scale: float, images: int
) -> None:
    drawn = drawing.one(**fields(sampler, steps, level, scale, images))
    assert drawn.latents.shape == (images, 4, 32, 64)
    assert drawn.pictures[0].shape == (128, 256, 3)
    assert len(drawn.timesteps[0]) == calls(sampler, steps)
    assert_same(drawn, expected_of(checkpoint, sampler, steps, level, scale, images))


@pytest.mark.parametrize("level", [20, 200])
def test_the_unet_is_fed_the_latent_then_the_noised_picture_and_the_level(
    drawing: Drawing, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    pipeline = drawing.checkpoints["larger"]
    recording = Recording(pipeline.runners["unet"])
    monkeypatch.setitem(pipeline.runners, "unet", recording)
    drawing.one(**fields("euler", 2, level, 4.0, 1))
    assert pipeline.low_resolution is not None
    noise: Noise = TorchGenerator(51)
    picture = pipeline.low_resolution.apply(to_network(PICTURE), level, noise)
    assert len(recording.feeds) == 2
    for feeds in recording.feeds:
        assert feeds["class_labels"].tolist() == [level, level]
        assert all(np.array_equal(row[4:], picture) for row in feeds["sample"])
    # The latent's noise is drawn after the picture's.
    first = noise.normal((4, 32, 64))
    direction = recording.feeds[0]["sample"][0, :4] / first
    np.testing.assert_allclose(direction, direction.mean(), rtol=1e-4)


def test_the_noise_level_changes_the_picture(drawing: Drawing) -> None:
    drawn = [drawing.one(**fields("ddim", 3, level, 1.0, 1)).latents for level in (0, 20, 350)]
    assert min(np.abs(drawn[0] - drawn[1]).max(), np.abs(drawn[1] - drawn[2]).max()) > 0.01


@pytest.mark.parametrize("level", [-1, 351])
def test_other_noise_levels_are_refused(drawing: Drawing, level: int) -> None:
    with pytest.raises(InvalidRequest, match=r"noise_level is .*0 to 350"):
        drawing.request(**fields("ddim", 3, level, 1.0, 1))
