"""Captions that training never saw, and what the embedded checkpoint makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.judging.judge import Judge, Pixels, Sight
from bench.judging.scenes import Painter
from bench.judging.trials import held_out, seen, text_to_image
from bench.quality import _means
from export.embedded.world import held_out_captions, is_held_out


def test_captions_are_the_held_out_ones() -> None:
    asked = held_out()
    assert asked == held_out_captions(200)
    assert len({item["caption"] for item in asked}) == 200
    assert all(is_held_out(item["shape"], item["colour"], item["background"]) for item in asked)
    trials = text_to_image(Judge(), Painter())
    assert [trial.fields["prompt"] for trial in trials] == [item["caption"] for item in asked]


def test_scores_count_each_aspect() -> None:
    class Told(Judge):
        """Sees what it is told."""

        def look(self, pixels: Pixels) -> Sight:
            return sights.pop()

    sights = [Sight("blue", "red", "ring"), Sight("red", None, None)]
    judge, asked = Told(), {"colour": "red", "background": "blue", "shape": "star"}
    scores = [seen(judge, asked, np.zeros((8, 8, 3), np.uint8)) for _ in range(2)]
    assert _means(scores) == {"colour": 0.5, "background": 0.5, "shape": 0.0}


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
    assert set(result["tasks"]["txt2img"]) == {"colour", "background", "shape", "cases"}
    assert result["tasks"]["txt2img"]["cases"] == 6


def test_missing_export_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", "--model", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python -m export" in error
