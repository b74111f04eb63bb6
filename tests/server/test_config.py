"""server.config: a deployment survives the way through a `config.pbtxt` parameter."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from engines.component import PipelineSpec
from engines.providers import default_cache
from server.config import COMPONENTS, PLACEMENTS, Placement, ServerConfig
from server.errors import StartupError

PLAIN = ServerConfig(Path("/models/a b/größe"))
SPECIAL = ServerConfig(
    model=Path("relative/export"),
    name="base",
    more=(("inpainting", Path("/models/größe")), ("x4", Path("relative/upscaler"))),
    provider="openvino",
    plans=True,
    backend="tensorrt",
    cache="/var/cache/aquatint",
    cuda_graphs=True,
    cpu_precision="f32",
    pinned=True,
    unet_threads=7,
    component_threads=3,
    max_rows=24,
    batch_sizes=(2, 4, 8),
    decode_images=5,
    queue_limit=99,
    row_cap=8,
    queue_bytes=1 << 20,
    response_cache_bytes=1 << 21,
    step_seconds=((2, 0.5), (8, 1.25)),
    text_encoder="in_process",
    unet="triton",
    vae_decoder="in_process",
    vae_encoder="in_process",
    depth_estimator="in_process",
    vae_tile=512,
    picture_bytes=1 << 10,
    picture_pixels=1 << 12,
    log_level="debug",
    log_json=True,
    trace_endpoint="http://localhost:4318",
)


@pytest.mark.parametrize("config", [PLAIN, SPECIAL], ids=["defaults", "special"])
def test_a_config_is_read_back_as_it_was_written(config: ServerConfig) -> None:
    text = config.to_json()
    again = ServerConfig.from_json(text)
    assert again == config
    assert hash(again) == hash(config)
    assert [type(getattr(again, f.name)) for f in fields(config)] == [
        type(getattr(config, f.name)) for f in fields(config)
    ]


def test_the_special_config_differs_from_the_defaults_everywhere() -> None:
    assert [f.name for f in fields(PLAIN) if getattr(PLAIN, f.name) == getattr(SPECIAL, f.name)] == []


def test_what_is_written_is_one_line_of_json() -> None:
    text = PLAIN.to_json()
    assert "\n" not in text
    assert json.loads(text)["model"] == "/models/a b/größe"


def test_only_the_model_must_be_named() -> None:
    assert ServerConfig.from_json('{"model": "m"}') == ServerConfig(Path("m"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        '"model"',
        "{}",
        '{"max_rows": 4}',
        '{"model": 3}',
        '{"model": null}',
        '{"model": "m", "batch_sizes": 5}',
        '{"model": "m", "more": 5}',
        '{"model": "m", "more": [["x"]]}',
        '{"model": "m", "more": [["x", null]]}',
        SPECIAL.to_json()[:-5],
    ],
)
def test_damaged_text_is_a_startup_error_that_says_what_to_do(text: str) -> None:
    with pytest.raises(StartupError, match="python -m server launch"):
        ServerConfig.from_json(text)


@pytest.mark.parametrize("place", PLACEMENTS)
def test_components_are_placed_as_asked(place: Placement) -> None:
    placed: dict[str, Any] = dict.fromkeys(COMPONENTS, place)
    config = ServerConfig(Path("m"), **placed)
    assert {name: config.placement(name) for name in COMPONENTS} == placed


def test_each_checkpoint_is_deployed_as_all_are_the_default_one_first() -> None:
    found = SPECIAL.checkpoints()
    assert list(found) == ["base", "inpainting", "x4"]
    assert [own.model for own in found.values()] == [SPECIAL.model, *(folder for _, folder in SPECIAL.more)]
    for name, own in found.items():
        same: dict[str, Any] = {"model": SPECIAL.model, "name": SPECIAL.name, "more": SPECIAL.more}
        assert replace(own, **same) == SPECIAL
        assert list(own.checkpoints()) == [name]


def test_a_checkpoint_has_its_folders_name_by_default() -> None:
    assert list(PLAIN.checkpoints()) == ["größe"]


@pytest.mark.parametrize("names", [("größe",), ("a", "a")])
def test_two_checkpoints_of_one_name_are_told(names: tuple[str, ...]) -> None:
    twice = replace(PLAIN, more=tuple((name, Path("elsewhere")) for name in names))
    with pytest.raises(StartupError, match=f"two checkpoints are named '{names[-1]}'; tell them apart with --model"):
        twice.checkpoints()


def test_components_are_run_as_the_deployment_says(fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    unet, decoder = (SPECIAL.settings(spec.component(name), spec) for name in ("unet", "vae_decoder"))
    assert (unet.threads, unet.pinned, unet.precision, unet.cuda_graphs) == (7, True, "f32", True)
    assert (decoder.threads, decoder.pinned, decoder.cache) == (3, False, Path("/var/cache/aquatint"))
    assert PLAIN.settings(spec.component("unet"), spec).cache == default_cache()


def test_a_gpu_is_told_the_shapes_that_will_come(fake_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PipelineSpec.read(fake_export)
    monkeypatch.setattr("server.config.device_capability", lambda: None)
    assert SPECIAL.settings(spec.component("unet"), spec).profiles == ()
    monkeypatch.setattr("server.config.device_capability", lambda: (8, 9))
    profiles = SPECIAL.settings(spec.component("unet"), spec).profiles
    assert [profile["sample"].maximum for profile in profiles] == [(24, 4, 8, 8), (24, 4, 16, 16)]
    assert len(SPECIAL.settings(spec.component("text_encoder"), spec).profiles) == 1


def test_components_beside_the_unet_leave_it_half_of_the_cores(
    fake_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = PipelineSpec.read(fake_export)
    decoder, config = spec.component("vae_decoder"), ServerConfig(model=fake_export)
    for cores, threads in ((1, 1), (2, 1), (32, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        assert config.settings(decoder, spec).threads == threads
    assert replace(config, component_threads=5).settings(decoder, spec).threads == 5
    assert config.settings(spec.component("unet"), spec).threads == 0
