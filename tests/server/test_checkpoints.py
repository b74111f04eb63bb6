"""server.checkpoints and server.placement: several checkpoints on one server, and what they share."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.component import Component, PipelineSpec
from engines.runner import FakeRunner
from server.checkpoints import Checkpoints, open_checkpoints
from server.config import COMPONENTS, ServerConfig, named_model
from server.errors import InvalidRequest, StartupError
from server.pipeline import Pipeline
from server.placement import placed_components
from server.repository import write_repository
from server.request import chosen_model

HERE: dict[str, Any] = dict.fromkeys(COMPONENTS, "in_process")


@pytest.fixture
def copy(tiny_export: Path, tmp_path: Path) -> Path:
    """The same checkpoint again, with another UNet as its file says."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_export, folder)
    spec = PipelineSpec.read(folder)
    unet = replace(spec.component("unet"), sha256="0" * 64)
    replace(spec, components={**spec.components, "unet": unet}).write(folder)
    return folder


def test_equal_files_are_loaded_once(tiny_export: Path, copy: Path) -> None:
    config = ServerConfig(model=tiny_export, name="one", more=(("two", copy),), provider="cpu", **HERE)
    checkpoints = open_checkpoints(config)
    one, two = checkpoints["one"].runners, checkpoints["two"].runners
    assert checkpoints.names == ("one", "two")
    assert checkpoints.default is checkpoints["one"]
    assert one["unet"] is not two["unet"]
    assert all(one[name] is two[name] for name in ("text_encoder", "vae_decoder", "vae_encoder"))
    assert [name for name, component in checkpoints.weights if component == "text_encoder"] == ["one"]
    assert [name for name, component in checkpoints.weights if component == "unet"] == ["one", "two"]
    assert all(size > 0 for size in checkpoints.weights.values())


def test_models_of_triton_are_shared_and_named_by_their_checkpoint(
    tiny_export: Path, copy: Path, tmp_path: Path
) -> None:
    config = ServerConfig(model=tiny_export, name="one", more=(("two", copy),), unet="triton")
    placed = {key: place.name for key, place in placed_components(config).items()}
    assert placed["two", "text_encoder"] == placed["one", "text_encoder"] == "text_encoder"
    assert (placed["one", "unet"], placed["two", "unet"]) == ("unet", "two-unet")
    asked: list[tuple[str, str]] = []

    def remote(component: Component, name: str, models: Any) -> FakeRunner:
        asked.append((component.name, name))
        return FakeRunner(component)

    open_checkpoints(config, remote)
    assert ("unet", "two-unet") in asked
    assert [name for _, name in asked].count("text_encoder") == 1
    write_repository(config, tmp_path / "models")
    names = {path.name for path in (tmp_path / "models").iterdir()}
    assert names == {"stable_diffusion", "stable_diffusion_stream", *placed.values()}
    assert 'name: "two-unet"' in (tmp_path / "models" / "two-unet" / "config.pbtxt").read_text()


@pytest.fixture
def larger(tiny_export: Path, tmp_path: Path) -> Path:
    """The same checkpoint again, for other resolutions."""
    folder = tmp_path / "larger"
    shutil.copytree(tiny_export, folder)
    replace(PipelineSpec.read(folder), resolutions=((64, 64), (192, 192))).write(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "gpu", "own"),
    [
        ({"provider": "cpu"}, None, set()),
        ({"provider": "cuda"}, (8, 9), set()),
        ({"provider": "tensorrt"}, (8, 9), {"unet", "vae_decoder", "vae_encoder"}),
        ({"provider": "auto", "plans": True}, None, {"unet", "vae_decoder", "vae_encoder"}),
        ({"provider": "cpu", "backend": "tensorrt"}, None, {"unet", "vae_decoder", "vae_encoder"}),
    ],
    ids=["a CPU", "CUDA", "compiled here", "plans", "Triton's backend"],
)
def test_what_is_compiled_for_each_resolution_is_shared_among_equal_resolutions(
    tiny_export: Path, larger: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, gpu: Any, own: set[str]
) -> None:
    monkeypatch.setattr("server.placement.device_capability", lambda: gpu)
    config = ServerConfig(tiny_export, "one", (("two", larger), ("three", tiny_export)), unet="triton", **changes)
    placed = {key: place.name for key, place in placed_components(config).items()}
    names = {name for checkpoint, name in placed if checkpoint == "two"}
    assert {name for name in names if placed["two", name] == f"two-{name}"} == own
    assert {name for name in names if placed["two", name] == name} == names - own
    assert all(placed["three", name] == name for name in names)


def test_a_runner_has_the_plans_of_its_own_checkpoints_resolutions(
    tiny_export: Path, larger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, tuple[tuple[int, int], ...]]] = []

    def open_(component: Component, spec: PipelineSpec, *rest: Any) -> FakeRunner:
        opened.append((component.name, spec.resolutions))
        return FakeRunner(component)

    monkeypatch.setattr("server.pipeline.open_plans", open_)
    asked: list[str] = []

    def profiles(component: Component, *rest: Any) -> list[Any]:
        asked.append(component.name)
        return []

    monkeypatch.setattr("server.compiled.plan_profiles", profiles)
    config = ServerConfig(tiny_export, "one", (("two", larger),), plans=True, **HERE)
    checkpoints = open_checkpoints(config)
    sides = [checkpoints[name].spec.resolutions for name in ("one", "two")]
    assert opened == [
        *((name, sides[0]) for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder")),
        *((name, sides[1]) for name in ("unet", "vae_decoder", "vae_encoder")),
    ]
    assert asked == [name for name, _ in opened]
    assert checkpoints["one"].runners["text_encoder"] is checkpoints["two"].runners["text_encoder"]


def test_a_request_names_its_checkpoint() -> None:
    names = ("base", "inpainting")
    assert chosen_model({}, names) == "base"
    assert chosen_model({"model": ["inpainting"]}, names) == "inpainting"
    with pytest.raises(InvalidRequest, match="model is 'ghost'; this server has base, inpainting"):
        chosen_model({"model": ["ghost"]}, names)


def test_two_checkpoints_need_two_names(tmp_path: Path) -> None:
    config = ServerConfig(model=tmp_path / "sd", more=(("sd", tmp_path / "other" / "sd"),))
    with pytest.raises(StartupError, match="NAME=DIR"):
        config.checkpoints()
    assert list(replace(config, name="first").checkpoints()) == ["first", "sd"]


def test_a_deployment_of_several_survives_its_parameter(tmp_path: Path) -> None:
    config = ServerConfig(model=tmp_path / "sd", name="a", more=(("b", tmp_path / "b"), ("c", tmp_path / "c")))
    assert ServerConfig.from_json(config.to_json()) == config


def test_models_are_named_on_the_command_line(tmp_path: Path) -> None:
    assert named_model(f"mine={tmp_path}") == ("mine", tmp_path)
    assert named_model(str(tmp_path / "sd21")) == ("sd21", tmp_path / "sd21")


def test_upscalers_are_known_to_all(fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    runners = {name: FakeRunner(component) for name, component in spec.components.items()}
    low = {"beta_schedule": "scaled_linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000}
    large = replace(spec, task="upscaling", low_res_schedule=low, max_noise_level=300)
    base, upscaler = Pipeline(spec, fake_export, runners, "base"), Pipeline(large, fake_export, runners, "up")
    checkpoints = Checkpoints([base, upscaler])
    assert checkpoints.limits("base").upscalers == {"up": spec.resolutions}
    assert checkpoints.limits("up").max_noise_level == 300
    assert (checkpoints.limits("base").enlarges, checkpoints.limits("up").enlarges) == (1, 4)
