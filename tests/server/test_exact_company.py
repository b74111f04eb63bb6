"""Requests of several tasks in the same UNet calls: each is what it is alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from server.request import Request
from tests.drawing import Drawing, scene, window

TASKS = {"text_to_image", "image_to_image", "inpainting", "hires"}


def crowd(drawing: Drawing, small: int, large: int, steps: int) -> list[Request]:
    """One request of each task that shares a UNet, all of the large size but the first pass of the last."""
    base: dict[str, Any] = {"num_inference_steps": steps, "height": large, "width": large}
    picture: dict[str, Any] = {"init_image": scene(large, large)}
    painted: dict[str, Any] = {**picture, "mask_image": window(large, large), "mask_blur": 0}
    return [
        drawing.request(
            **{**base, "height": small, "width": small, "num_inference_steps": 2},
            hires_height=large,
            hires_width=large,
            hires_steps=steps,
            seed=1,
            sampler="heun",
        ),
        drawing.request(**base, seed=2, sampler="euler_ancestral", guidance_scale=3.0),
        drawing.request(**base, **picture, seed=3, sampler="dpmpp_2m", strength=0.9, num_images=2, guidance_scale=1.0),
        drawing.request(**base, **painted, seed=5, sampler="ddim", eta=0.5, strength=0.9),
        drawing.request(**base, **painted, seed=6, sampler="euler", masked_content="latent_noise", soft_mask=1),
    ]


def assert_as_alone(drawing: Drawing, requests: list[Request], tolerance: float) -> None:
    alone = [drawing.draw(request)[0] for request in requests]
    drawing.calls.clear()
    together = drawing.draw(*requests, arrivals=[0, 0, 1, 2, 3])
    assert any(set(call.tasks) >= TASKS and call.rows > 6 for call in drawing.calls)
    for one, other in zip(alone, together, strict=True):
        assert one.timesteps == other.timesteps
        assert np.abs(one.latents - other.latents).max() <= tolerance
        for picture, same in zip(one.pictures, other.pictures, strict=True):
            assert np.abs(picture.astype(int) - same.astype(int)).max() <= (1 if tolerance else 0)


@pytest.fixture
def fakes(fake_export: Path) -> Iterator[Drawing]:
    config = ServerConfig(model=fake_export, name="one", more=(("other", fake_export),), provider="fake")
    with Drawing(open_checkpoints(config)) as made:
        yield made


def test_tasks_share_calls_and_no_bit_changes(fakes: Drawing) -> None:
    assert_as_alone(fakes, crowd(fakes, 64, 128, 12), 0)


def test_tasks_share_calls_of_a_real_network(embedded_export: Path) -> None:
    config = ServerConfig(model=embedded_export, name="base", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as drawing:
        assert_as_alone(drawing, crowd(drawing, 128, 192, 6), 1e-3)


def test_checkpoints_share_no_call(fakes: Drawing) -> None:
    """Of the same shapes, even."""
    painted: dict[str, Any] = {
        "init_image": scene(128, 128),
        "mask_image": window(128, 128),
        "height": 128,
        "width": 128,
    }
    requests = [
        fakes.request("one", num_inference_steps=6, seed=1, height=128, width=128),
        fakes.request("other", num_inference_steps=6, seed=1, height=128, width=128),
        fakes.request("other", num_inference_steps=6, seed=2, strength=1.0, **painted),
    ]
    alone = [fakes.draw(request)[0].latents for request in requests]
    fakes.calls.clear()
    together = fakes.draw(*requests)
    assert {call.checkpoints for call in fakes.calls} == {frozenset({"one"}), frozenset({"other"})}
    assert any(len(call.tasks) == 2 for call in fakes.calls)
    assert all(np.array_equal(one, other.latents) for one, other in zip(alone, together, strict=True))
