"""One JSON object as the last line; the file has the samples too."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.reporting.measures import Measure, Plot, told
from bench.reporting.results import described, environment, tell


def test_tell_prints_a_summary_of_what_it_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "deep" / "result.json"
    plots = [Plot("steps", "curve", "rows", "ms", {"unet": [(2, 5.0), (16, 9.0)]})]
    figures = told([Measure.median("step", [5.0, 6.0, 7.0], "ms", "lower")], plots)
    tell(described("host", ["--rows", "2 4"], {"value": 1.5, **figures}), kept)
    printed, whole = json.loads(capsys.readouterr().out), json.loads(kept.read_text())
    assert printed["value"] == 1.5
    assert printed["command"] == "python -m bench host --rows '2 4'"
    assert printed["measures"] == {"step": {"value": 6.0, "unit": "ms", "better": "lower"}}
    assert "plots" not in printed
    assert whole["measures"]["step"]["samples"] == [5.0, 6.0, 7.0]
    assert whole["plots"][0]["series"] == {"unet": [[2, 5.0], [16, 9.0]]}
    assert whole["partial"] is False
    assert {"python", "processor", "cores", "packages"} <= set(whole["environment"])


def test_the_server_that_was_measured_is_told_beside_the_machine() -> None:
    found = described("online", [], {"environment": {"server": {"name": "triton", "version": "2.51.0"}}})
    assert found["environment"] == {
        **described("online", [], {})["environment"],
        "server": {"name": "triton", "version": "2.51.0"},
    }


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo 'NVIDIA L4, 23034 MiB, 570.1'\necho 'NVIDIA L4, 23034 MiB, 570.1'", ["NVIDIA L4, 23034 MiB, 570.1"] * 2),
        ("echo 'NVIDIA-SMI has failed'\nexit 9", []),
    ],
)
def test_gpus_are_what_the_driver_tells(
    script: str, gpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\n{script}\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert environment()["gpus"] == gpus
