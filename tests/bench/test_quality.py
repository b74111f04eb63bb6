"""Captions that training never saw, and what the embedded checkpoint makes of them."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import quality
from bench.__main__ import main
from bench.judging.judge import Judge, Pixels, Sight
from bench.judging.likeness import Likeness
from bench.judging.scenes import Painter
from bench.judging.scores import means
from bench.judging.trials import held_out, seen, text_to_image
from bench.quality import Found, _likeness
from export.embedded.world import held_out_captions, is_held_out
from server.errors import ServerError


class ChannelMeans(torch.nn.Module):
    """In Inception's place."""

    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return pictures.float().mean(dim=[2, 3])


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
    assert means(scores) == {"colour": 0.5, "background": 0.5, "shape": 0.0}


@pytest.mark.triton
def test_embedded_checkpoint_draws_what_is_asked(
    embedded_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 pictures through the real Triton."""
    kept = tmp_path / "quality.json"
    assert main(["quality", "--model", str(embedded_export), "--json", str(kept)]) == 0
    result = json.loads(kept.read_text())
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["tasks"] == result["tasks"]
    shape = result["measures"]["txt2img shape"]
    assert shape["low"] < shape["value"] <= shape["high"]
    right = result["tasks"]["txt2img"]
    assert right["colour"] >= 0.95, right
    assert right["background"] >= 0.95, right
    assert right["shape"] >= 0.90, right


@pytest.mark.triton
def test_dry_run_needs_no_networks(embedded_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Judged, compared and measured, on two servers."""
    (tmp_path / "captions.txt").write_text("a red circle\na blue star\na green ring\n", encoding="utf-8")
    real = tmp_path / "real"
    real.mkdir()
    for i, colour in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (40 + i, 30), colour).save(real / f"{i}.png")
    torch.jit.save(torch.jit.script(ChannelMeans()), tmp_path / "means.pt")
    kept = tmp_path / "quality.json"
    arguments = ["quality", "--model", str(embedded_export), "--dry-run", "--cases", "6", "--steps", "2"]
    arguments += ["--task", "txt2img", "--compare-with", "cpu", "--captions", str(tmp_path / "captions.txt")]
    arguments += ["--real", str(real), "--inception", str(tmp_path / "means.pt"), "--json", str(kept)]
    assert main(arguments) == 0
    capsys.readouterr()
    result = json.loads(kept.read_text())
    assert result["settings"]["dry_run"] is True
    assert set(result["tasks"]["txt2img"]) == {"colour", "background", "shape", "cases"}
    assert result["tasks"]["txt2img"]["cases"] == 6
    compared = result["compared"]["cpu"]["tasks"]
    assert {name: task["cases"] for name, task in compared.items()} == {"txt2img": 6, "captions": 3}
    # Fake networks draw the same whoever runs them.
    assert compared["captions"]["ssim"]["least"] == 1
    assert (result["captions"]["cases"], result["captions"]["real"]) == (3, 4)
    assert result["captions"]["fid"] > 0
    assert "too large" in result["captions"]["note"]
    assert result["captions"]["mlperf_window"]["fid"] == [23.01085758, 23.95007626]
    assert result["measures"]["FID"]["value"] == result["captions"]["fid"]
    assert [plot["kind"] for plot in result["plots"]] == ["histogram"] * 4


def test_likeness_is_told_with_its_distribution() -> None:
    found = Found()
    alike = [Likeness(30.0, 0.9), Likeness(40.0, 0.99), Likeness(35.0, 0.95)]
    figures = _likeness(found, "txt2img with int8", alike)
    assert figures == {
        "cases": 3,
        "psnr_db": {"median": 35.0, "mean": 35.0, "least": 30.0},
        "ssim": {"median": 0.95, "mean": 0.9467, "least": 0.9},
    }
    assert {(measure.name, measure.unit) for measure in found.measures} == {
        ("PSNR txt2img with int8, median", "dB"),
        ("PSNR txt2img with int8, least", "dB"),
        ("SSIM txt2img with int8, median", ""),
        ("SSIM txt2img with int8, least", ""),
    }
    for plot in found.plots:
        assert sum(count for points in plot.series.values() for _, count in points) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cases", "0"], "--cases is 0"),
        (["--captions", "0"], "--cases is 0"),
        (["--concurrency", "0"], "--concurrency is 0"),
        (["--real", "pictures"], "give one"),
        (["--captions", "list.txt"], "add --real DIR, --clip DIR or --compare-with"),
        (["--captions", "none.txt", "--compare-with", "cpu"], "none.txt cannot be read"),
        (["--compare-with", "out/none"], "is no folder"),
        (["--compare-with", "abacus"], "'abacus' is not available here"),
        (["--compare-with", "cpu", "--url", "localhost:1"], "give that instead of --url"),
    ],
)
def test_options_that_do_not_fit_are_told_before_anything_is_drawn(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quality", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [(ServerError("the server went away"), "the server went away"), (KeyboardInterrupt(), "interrupted")],
)
def test_what_was_judged_before_a_failure_is_kept(
    error: BaseException, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what fails, or is interrupted, before that is one sentence."""

    @contextlib.contextmanager
    def drawing(*_: object) -> Iterator[quality.Draws]:
        def draws(requests: quality.Requests) -> list[Pixels]:
            if not answers.pop(0):
                raise error
            return [np.zeros((128, 128, 3), np.uint8) for _ in requests]

        yield draws

    monkeypatch.setattr(quality, "_drawing", drawing)
    kept = tmp_path / "quality.json"
    arguments = ["quality", "--task", "txt2img", "--task", "hires", "--cases", "3", "--json", str(kept)]
    answers = [True, False]
    assert main(arguments) == 1
    result = json.loads(kept.read_text())
    assert (result["partial"], result["failures"], list(result["tasks"])) == (True, [said], ["txt2img"])
    assert "txt2img colour" in result["measures"]
    capsys.readouterr()
    answers = [False]
    assert main(arguments) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("given", "sent"), [([], None), (["--resolution", "192"], 192)])
def test_a_size_is_sent_only_where_one_is_given(given: list[str], sent: int | None, tmp_path: Path) -> None:
    """So that captions are drawn in the first size of whatever checkpoint is served."""
    captions = tmp_path / "captions.txt"
    captions.write_text("a red circle\n", encoding="utf-8")
    parser = argparse.ArgumentParser()
    quality.add_options(parser)
    options = parser.parse_args(["--task", "txt2img", "--cases", "2", "--captions", str(captions), *given])
    requests = [trial.fields for trial in quality._trials(options)["txt2img"]] + quality._captions(options)
    assert [request.get("height") for request in requests] == [sent] * 3


def test_missing_export_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", "--model", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python -m export" in error
