"""One JSON object as the last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report import report


def test_report_prints_and_keeps_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "deep" / "result.json"
    report({"value": 1.5}, kept)
    printed = capsys.readouterr().out
    assert printed == kept.read_text()
    result = json.loads(printed)
    assert result["value"] == 1.5
    assert {"python", "processor", "cores"} <= set(result["environment"])
