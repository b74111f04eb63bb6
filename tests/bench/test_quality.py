"""Captions that training never saw, and what the embedded checkpoint makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.judge import Sight
from bench.quality import captions, scores
from export.embedded.world import held_out_captions, is_held_out


def test_captions_are_the_held_out_ones() -> None:
    asked = captions(200)
    assert asked == held_out_captions(200)
    assert len({item["caption"] for item in asked}) == 200
    assert all(is_held_out(item["shape"], item["colour"], item["background"]) for item in asked)


def test_scores_count_each_aspect() -> None:
    asked = [{"colour": "red", "background": "blue", "shape": "star"}] * 2
    seen = [Sight("blue", "red", "ring"), Sight("red", None, None)]
    assert scores(asked, seen) == {"colour": 0.5, "background": 0.5, "shape": 0.0}


@pytest.mark.triton
def test_embedded_checkpoint_draws_what_is_asked(
    embedded_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 pictures through the real Triton."""
    kept = tmp_path / "quality.json"
    assert main(["quality", "--model", str(embedded_export), "--json", str(kept)]) == 0
    result = json.loads(kept.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    right = result["tasks"]["txt2img"]
    assert right["colour"] >= 0.95, right
    assert right["background"] >= 0.95, right
    assert right["shape"] >= 0.90, right


@pytest.mark.triton
def test_dry_run_needs_no_networks(embedded_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quality", "--model", str(embedded_export), "--dry-run", "--captions", "6", "--steps", "2"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["settings"]["dry_run"] is True
    assert set(result["tasks"]["txt2img"]) == {"colour", "background", "shape"}


def test_missing_export_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", "--model", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python -m export" in error
