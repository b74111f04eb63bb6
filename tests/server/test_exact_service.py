"""Every task through a running service with real networks: clients get what was drawn in the loop."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.checkpoints import Checkpoints, open_checkpoints
from server.config import ServerConfig
from server.errors import InvalidRequest
from server.picture_files import PictureLimits
from server.pipeline import Pipeline
from server.preparation import Preparation
from server.service import Service
from tests.drawing import Drawing, scene, sent, window
from tests.fakes import ListSink

EVEN = ((2, 0.02), (16, 0.05))
PICTURE, MASK = scene(64, 128), window(64, 128)
SHORT: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 3, "guidance_scale": 3.0, "num_images": 2}
REQUESTS: dict[str, dict[str, Any]] = {
    "inpainting": {"model": "masked", "init_image": PICTURE, "mask_image": MASK, "mask_blur": 2},
    "image_to_image": {"model": "masked", "init_image": PICTURE, "strength": 0.7},
    "outpainting": {"model": "masked", "init_image": PICTURE[:, :64], "extend_left": 64},
    "only_masked": {"model": "masked", "init_image": PICTURE, "mask_image": MASK, "only_masked": 1},
    "depth_to_image": {"model": "deep", "init_image": PICTURE},
    "depth_map": {"model": "deep", "depth_map": np.eye(40, dtype=np.float32), "height": 64, "width": 128},
    "upscaling": {"model": "larger", "init_image": scene(32, 64), "noise_level": 50},
    "generate_then_upscale": {"model": "masked", "height": 64, "width": 64, "upscale_model": "larger"},
}


@pytest.fixture(scope="module")
def config(task_exports: Callable[[str], tuple[Path, Path]]) -> ServerConfig:
    masked, deep, larger = (task_exports(task)[1] for task in ("inpainting", "depth", "upscaling"))
    return ServerConfig(
        model=masked,
        name="masked",
        more=(("deep", deep), ("larger", larger)),
        provider="cpu",
        unet_threads=1,
        step_seconds=EVEN,
    )


@pytest.fixture(scope="module")
def checkpoints(config: ServerConfig) -> Checkpoints:
    return open_checkpoints(config)


@pytest.fixture(scope="module")
def service(checkpoints: Checkpoints, config: ServerConfig) -> Iterator[Service]:
    made = Service(checkpoints, config)
    made.start()
    yield made
    made.close()


def submitted(service: Service, seed: int, fields: dict[str, Any]) -> ListSink:
    sink = ListSink()
    tensors = {"seed": seed, **SHORT, **fields}
    values = {name: sent(value) if isinstance(value, np.ndarray) else value for name, value in tensors.items()}
    service.submit({name: [value] for name, value in values.items()}, sink)
    return sink


def test_all_tasks_together_are_answered_with_what_each_draws_alone(service: Service, checkpoints: Checkpoints) -> None:
    sinks = {name: submitted(service, seed, fields) for seed, (name, fields) in enumerate(REQUESTS.items())}
    answered = {name: sink.wait(120) for name, sink in sinks.items()}
    assert all(answered.values()), answered
    with Drawing(checkpoints) as drawing:
        for seed, (name, fields) in enumerate(REQUESTS.items()):
            assert sinks[name].images is not None, (name, sinks[name].error)
            alone = drawing.one(**{"seed": seed, **SHORT, **fields})
            for data, picture in zip(sinks[name].images or [], alone.pictures, strict=True):
                pixels = np.asarray(Image.open(io.BytesIO(data)))
                assert pixels.shape == picture.shape, name
                assert np.abs(pixels.astype(int) - picture).max() <= 1, name


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("noise_level", 101, "noise_level is 101; .* to 100"),
        ("clip_skip", 2, "clip_skip is 2; .* 1 layers"),
    ],
)
def test_what_only_the_upscaler_cannot_do_is_refused_before_anything_is_drawn(
    config: ServerConfig,
    checkpoints: Checkpoints,
    field: str,
    value: int,
    said: str,
) -> None:
    upscaler = checkpoints["larger"]
    specs = {
        "masked": replace(checkpoints["masked"].spec, text_layers=5),
        "larger": replace(upscaler.spec, max_noise_level=100, text_layers=1),
    }
    weaker = Checkpoints(
        [Pipeline(spec, config.model, checkpoints[name].runners, name) for name, spec in specs.items()]
    )
    fields: dict[str, Any] = {
        "height": 64,
        "width": 64,
        "num_inference_steps": 3,
        "upscale_model": "larger",
        "noise_level": 20,
    }
    preparation = Preparation(weaker, PictureLimits())
    with Drawing(weaker) as drawing:
        asked = drawing.request("masked", **fields), drawing.request("masked", **{**fields, field: value})
    assert len(preparation.tables(asked[0])) == 2
    with pytest.raises(InvalidRequest, match=said):
        preparation.tables(asked[1])
