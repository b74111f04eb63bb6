"""A whole picture over its engine calls, on the real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main


def test_bad_numbers_are_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["picture", "--steps", "0"]) == 1
    assert "--steps and --repeats must be at least 1" in capsys.readouterr().err


@pytest.mark.triton
def test_a_picture_takes_longer_than_its_calls(tiny_export: Path, tmp_path: Path) -> None:
    result = tmp_path / "picture.json"
    options = ["--model", str(tiny_export), "--provider", "cpu", "--size", "64", "--steps", "3", "--repeats", "2"]
    assert main(["picture", *options, "--log", str(tmp_path / "triton.log"), "--json", str(result)]) == 0
    found = json.loads(result.read_text())
    assert len(found["picture_seconds"]) == len(found["call_seconds"]) == 2
    assert all(0 < calls < whole for whole, calls in zip(found["picture_seconds"], found["call_seconds"], strict=True))
    assert found["overhead"] > 0
