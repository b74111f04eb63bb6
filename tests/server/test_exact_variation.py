"""Variation seeds of every task: at full strength they draw what their own seed would, and later draws are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from tests.drawing import Drawing, scene, window

SMALL, LARGE = 64, 128
BASE: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0, "seed": 3}


def square(side: int) -> dict[str, Any]:
    return {"height": side, "width": side}


def painted(side: int) -> dict[str, Any]:
    return {"init_image": scene(side, side), "mask_image": window(side, side), "mask_blur": 0}


TASKS: dict[str, dict[str, Any]] = {
    "text_to_image": square(LARGE),
    "image_to_image": {"init_image": scene(LARGE, LARGE), "strength": 0.75},
    "inpainting": {**painted(LARGE), "strength": 0.75},
    "inpainting_anew": painted(LARGE),
    "masked": {"model": "masked", **painted(SMALL), "strength": 0.75},
    "masked_anew": {"model": "masked", **painted(SMALL)},
    "masked_text": {"model": "masked", **square(SMALL)},
    "depth": {"model": "deep", "init_image": scene(SMALL, SMALL), "strength": 0.75},
    "depth_map": {"model": "deep", "depth_map": np.eye(9, dtype=np.float32), **square(SMALL)},
    "upscaling": {"model": "larger", "init_image": scene(32, 32)},
    "hires": {**square(LARGE), "hires_height": 192, "hires_upscaler": "lanczos"},
    "latent_hires": {**square(LARGE), "hires_height": 192},
}


@pytest.fixture(scope="module")
def drawing(embedded_export: Path, task_exports: Callable[[str], tuple[Path, Path]]) -> Iterator[Drawing]:
    names = {"masked": "inpainting", "deep": "depth", "larger": "upscaling"}
    more = tuple((name, task_exports(task)[1]) for name, task in names.items())
    config = ServerConfig(model=embedded_export, name="base", more=more, provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


@pytest.mark.parametrize("task", TASKS)
def test_a_variation_of_full_strength_is_what_its_seed_draws(drawing: Drawing, task: str) -> None:
    fields = {**BASE, "sampler": "euler", **TASKS[task]}
    varied = drawing.one(**fields, subseed=8, subseed_strength=1.0).latents
    half = drawing.one(**fields, subseed=8, subseed_strength=0.5).latents
    other = drawing.one(**{**fields, "seed": 8}).latents
    np.testing.assert_allclose(varied, other, atol=1e-3 * max(1.0, float(np.abs(other).max())))
    own = drawing.one(**fields).latents
    far = np.abs(own - other).mean()
    assert min(np.abs(half - own).mean(), np.abs(half - other).mean()) > 0.2 * far


@pytest.mark.parametrize("task", TASKS)
def test_the_delta_of_the_seed_is_for_the_draws_of_the_steps(drawing: Drawing, task: str) -> None:
    fields = {**BASE, **TASKS[task]}
    plain = drawing.one(**fields, sampler="euler").latents
    assert np.array_equal(drawing.one(**fields, sampler="euler", noise_seed_delta=9).latents, plain)
    drawn = drawing.one(**fields, sampler="euler_ancestral").latents
    shifted = drawing.one(**fields, sampler="euler_ancestral", noise_seed_delta=9).latents
    assert np.abs(drawn - shifted).max() > 0.01
