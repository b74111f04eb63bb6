"""Measured curves come in as they were measured, and only for what they were measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.component import PipelineSpec
from engines.runner import FakeRunner
from server.__main__ import main, parser
from server.config import ServerConfig
from server.curve_file import CurveFile, step_seconds
from server.errors import ServerError
from server.launch import TritonServer
from server.pipeline import open_pipeline
from server.warm_up import warm_up

TIMINGS = [
    {"component": "unet", "size": "64x64", "rows": 8, "median_ms": 30.0, "spread": 0.1},
    {"component": "unet", "size": "64x64", "rows": 2, "median_ms": 12.0},
    {"component": "unet", "size": "128x128", "rows": 2, "median_ms": 50.0},
    {"component": "vae_decoder", "size": "64x64", "rows": 1, "median_ms": 5.0},
]
RESULT = {"checkpoint": "tests/fake", "fingerprint": "0" * 64, "provider": "cpu", "timings": TIMINGS}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "offline.json"
    path.write_text(json.dumps({**RESULT, **changes}))
    return path


def test_points_are_seconds_by_rows(tmp_path: Path) -> None:
    file = CurveFile.read(written(tmp_path))
    assert file.points("unet", "64x64") == ((2, 0.012), (8, 0.03))
    assert file.sizes("unet") == ["64x64", "128x128"]
    with pytest.raises(ServerError, match="has the text_encoder at no size and not at 64x64; write one with"):
        file.points("text_encoder", "64x64")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"provider": "cpu"}',
        '{"provider": "cpu", "timings": [{"rows": 2}]}',
        '{"provider": "cpu", "timings": 3}',
        json.dumps({**RESULT, "timings": [{**TIMINGS[0], "median_ms": 0}]}),
        json.dumps({**RESULT, "timings": [{**TIMINGS[0], "rows": 0}]}),
        json.dumps({**RESULT, "timings": [{**TIMINGS[0], "rows": float("inf")}]}),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ServerError, match=r"x\.json is no result of `bench offline`"):
        CurveFile.read(path)
    with pytest.raises(ServerError, match="cannot be read"):
        CurveFile.read(tmp_path / "nothing.json")


def test_a_server_takes_the_curve_of_its_first_size(tmp_path: Path, fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    assert step_seconds(written(tmp_path), spec, "cpu") == ((2, 0.012), (8, 0.03))


def test_a_curve_tells_whether_plans_were_measured(tmp_path: Path, fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    by_plans, without = {"provider": "tensorrt", "plans": True}, {"provider": "tensorrt", "plans": False}
    for changes, plans in ((by_plans, True), (without, False), ({"provider": "tensorrt"}, False), (by_plans, None)):
        assert step_seconds(written(tmp_path, **changes), spec, "tensorrt", plans) == ((2, 0.012), (8, 0.03))
    with pytest.raises(ServerError, match=r"measured with plans, and the UNet runs without: add --plans, or measure"):
        step_seconds(written(tmp_path, **by_plans), spec, "tensorrt", plans=False)
    with pytest.raises(ServerError, match=r"without plans, .* with plans: leave out .*--provider tensorrt --plans"):
        step_seconds(written(tmp_path, **without), spec, "tensorrt", plans=True)


@pytest.mark.parametrize(
    ("changes", "provider", "said"),
    [
        ({"fingerprint": "f" * 64}, "cpu", r"measured with tests/fake \(ffffffffffff\), and this is tests/fake \(0000"),
        ({"fingerprint": ""}, "cpu", "measured with a checkpoint it does not name"),
        ({"provider": "cuda"}, "cpu", "by the provider cuda, and the UNet runs by cpu: add --provider cuda"),
        ({"timings": TIMINGS[2:]}, "cpu", "has the unet at 128x128 and not at 64x64"),
    ],
)
def test_a_curve_of_something_else_is_refused(
    tmp_path: Path, fake_export: Path, changes: dict[str, Any], provider: str, said: str
) -> None:
    with pytest.raises(ServerError, match=said):
        step_seconds(written(tmp_path, **changes), PipelineSpec.read(fake_export), provider)


def test_a_measured_curve_spares_the_warm_up(fake_export: Path) -> None:
    config = ServerConfig(fake_export, provider="fake", step_seconds=((2, 2**-10), (8, 2**-9)))
    pipeline = open_pipeline(config)
    unet = pipeline.runners["unet"]
    assert isinstance(unet, FakeRunner)
    assert warm_up(pipeline, config).step_seconds == config.step_seconds
    assert set(unet.calls) == {2}


def test_launch_takes_a_curve(tmp_path: Path, fake_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerConfig] = []
    monkeypatch.setattr(TritonServer, "__init__", lambda self, config, *rest, **more: seen.append(config))
    monkeypatch.setattr("server.supervisor.Supervisor.__init__", lambda self, server, **rest: None)
    monkeypatch.setattr("server.supervisor.serve_until_signal", lambda supervisor, on_ready: 0)
    curve = ["--step-curve", str(written(tmp_path))]
    assert main(["launch", "--model", str(fake_export), "--provider", "fake", *curve]) == 0
    assert seen[0].step_seconds == ((2, 0.012), (8, 0.03))
    assert main(["launch", "--model", str(fake_export), "--provider", "fake"]) == 0
    assert seen[1].step_seconds == ()


def test_launch_refuses_a_curve_for_several(
    tmp_path: Path, fake_export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", str(fake_export), "--model", f"again={fake_export}"]
    assert parser().parse_args(["launch", *models]).step_curve is None
    assert main(["launch", *models, "--provider", "fake", "--step-curve", str(written(tmp_path))]) == 1
    assert "--step-curve is of one checkpoint" in capsys.readouterr().err
