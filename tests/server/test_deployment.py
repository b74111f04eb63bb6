"""What is told of a deployment before a server is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import server.deployment
from engines.component import PIPELINE_FILE, PipelineSpec
from engines.errors import ArtefactError, EngineError
from server.config import Backend, ServerConfig
from server.deployment import check_deployment
from server.errors import ScheduleError, StartupError


@pytest.fixture
def copy(fake_export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fake_export, tmp_path / "export"))


def test_a_good_deployment_passes(fake_export: Path) -> None:
    check_deployment(ServerConfig(model=fake_export, provider="fake"))
    check_deployment(ServerConfig(model=fake_export, more=(("again", fake_export),), provider="fake"))


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_backend_that_this_tritonserver_lacks_is_told_with_the_remedy(fake_export: Path, backend: Backend) -> None:
    """The one that comes in a wheel has the Python backend only."""
    with pytest.raises(StartupError, match=f"has no backend '{backend}'; use NVIDIA's Triton image, or --backend py"):
        check_deployment(ServerConfig(model=fake_export, provider="fake", backend=backend))


@pytest.mark.parametrize(
    ("family", "task"), [("sd1", "refining"), ("sdxl", "text_to_image"), ("controlnet", "control")]
)
def test_another_kind_of_checkpoint_is_told(copy: Path, family: str, task: str) -> None:
    content = json.loads((copy / PIPELINE_FILE).read_text())
    (copy / PIPELINE_FILE).write_text(json.dumps({**content, "family": family, "task": task}))
    with pytest.raises(
        StartupError, match=f"is an {family} checkpoint for {task}; launch an export of sd1 for text_to_image, "
    ):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_components_that_were_not_exported_are_told(copy: Path) -> None:
    content = json.loads((copy / PIPELINE_FILE).read_text())
    del content["components"]["vae_decoder"]
    (copy / PIPELINE_FILE).write_text(json.dumps(content))
    with pytest.raises(StartupError, match="was exported without vae_decoder; export every component"):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_a_unet_that_takes_residuals_is_told(copy: Path) -> None:
    content = json.loads((copy / PIPELINE_FILE).read_text())
    residual = {"name": "mid_residual", "dtype": "float32", "shape": ["rows", 8, "height/8", "width/8"]}
    content["components"]["unet"]["inputs"].append(residual)
    (copy / PIPELINE_FILE).write_text(json.dumps(content))
    with pytest.raises(StartupError, match="was exported for a ControlNet; export it without --controlnet"):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_missing_onnx_file_is_told(fake_export: Path) -> None:
    with pytest.raises(ArtefactError, match=r"text_encoder\.onnx does not exist; run `python -m export` again"):
        check_deployment(ServerConfig(model=fake_export, provider="cpu"))


def test_damaged_tokenizer_is_told(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ArtefactError, match="tokenizer"):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_unknown_schedule_is_told(copy: Path) -> None:
    content = json.loads((copy / PIPELINE_FILE).read_text())
    content["schedule"]["beta_schedule"] = "sigmoid"
    (copy / PIPELINE_FILE).write_text(json.dumps(content))
    with pytest.raises(ScheduleError, match="beta_schedule is 'sigmoid'"):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_too_little_shared_memory_is_told(fake_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.deployment, "SHARED_MEMORY_BYTES", 1 << 60)
    with pytest.raises(StartupError, match=r"/dev/shm has \d+ MiB free"):
        check_deployment(ServerConfig(model=fake_export, provider="fake"))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ({"max_rows": 1}, "max_rows is 1: give at least 2"),
        ({"row_cap": -1}, "row_cap is -1: give at least 0"),
        ({"queue_limit": 0}, "queue_limit is 0: give at least 1"),
        ({"vae_tile": 7}, "vae_tile is 7: give at least 64 pixels, or 0"),
        ({"vae_tile": -1}, "vae_tile is -1"),
    ],
)
def test_numbers_that_cannot_work_are_told(fake_export: Path, number: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        check_deployment(ServerConfig(model=fake_export, provider="fake", **number))


@pytest.mark.parametrize("plans", [False, True])
def test_a_provider_that_is_none_is_told(fake_export: Path, monkeypatch: pytest.MonkeyPatch, plans: bool) -> None:
    monkeypatch.setattr(PipelineSpec, "verify", lambda spec, folder: None)
    with pytest.raises(EngineError, match="abacus"):
        check_deployment(ServerConfig(model=fake_export, provider="abacus", plans=plans))
