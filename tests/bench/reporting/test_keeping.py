"""Results that stay in the repository."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench.reporting.keeping import FOLDER, PATH, POINTS, SAMPLES, keep, kept, pathless, told_measures
from bench.reporting.measures import Measure, Plot
from bench.reporting.reading import read
from bench.reporting.results import ROOT
from server.errors import ServerError
from tests.written_results import written

MEASURES = [Measure("latency p50", 1.23456789, "ms", "lower"), Measure("latency p99", 2.0, "ms"), Measure("rate", 3.0)]


def test_a_kept_result_has_its_figures_and_not_its_bulk(tmp_path: Path) -> None:
    draw = random.Random(0)
    samples = [draw.random() for _ in range(1000)]
    line = [(n / 3, draw.random()) for n in range(1000)]
    file = written(
        tmp_path / "a.json",
        [Measure.median("m", samples, "ms", "lower")],
        [Plot("p", "curve", "x", "y", {"s": line})],
        requests=[{"number": n} for n in range(1000)],
        settings={"model": str(ROOT / "out" / "export"), "log": str(tmp_path / "deep" / "triton.log")},
        own={"short": 1},
    )
    place = keep(file, folder=tmp_path / "kept", note="a busy machine")
    result = read(place)
    assert len(result.measures["m"].samples) == SAMPLES
    assert result.measures["m"].value == pytest.approx(read(file).measures["m"].value, rel=1e-4)
    assert len(result.plots[0].series["s"]) == POINTS
    assert result.note == "a busy machine"
    assert result.whole["settings"] == {"model": "out/export", "log": "triton.log"}
    assert result.whole["own"] == {"short": 1}
    assert result.whole["left_out"] == ["requests"]
    assert result.command == "python -m bench online"
    assert place.stat().st_size < 20_000
    assert [one.name for one in kept(tmp_path / "kept")] == ["a.json"]


def test_any_result_is_found_again_where_it_is_kept(tmp_path: Path) -> None:
    bare = {"title": "p", "kind": "curve", "x": "x", "y": "y"}
    file = written(tmp_path / "night.txt", MEASURES)
    file.write_text(json.dumps({**read(file).whole, "plots": [bare]}))
    assert keep(file, folder=tmp_path / "kept").name == "night.json"
    (found,) = kept(tmp_path / "kept")
    assert found.plots[0].series == {}


def test_what_readme_tells_is_chosen_once(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", MEASURES)
    folder = tmp_path / "kept"
    assert told_measures(read(keep(file, folder=folder))) == ["latency p50", "latency p99", "rate"]
    keep(file, only=["rate", "*p99"], folder=folder)
    assert told_measures(read(keep(file, folder=folder))) == ["latency p99", "rate"]
    with pytest.raises(ServerError, match=r"'speed' fits none of .*a\.json's figures: latency p50, latency p99, rate"):
        keep(file, only=["speed"], folder=folder)


@pytest.mark.parametrize(
    ("measures", "partial", "words"), [(MEASURES, True, "is partial"), ([], False, "has no figures to keep")]
)
def test_half_a_result_is_not_kept(measures: list[Measure], partial: bool, words: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", measures, partial=partial)
    with pytest.raises(ServerError, match=words):
        keep(file, folder=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("--log /var/tmp/a.log --rate 5", "--log a.log --rate 5"),
        (f"--model base={ROOT}/out/export", "--model base=out/export"),
        ("images/s and /s, host:8001, http://host/a/b, out/a/b, ./a/b, ~/a/b", None),
        ("12/10/2026 at 3/4", None),
    ],
)
def test_paths_of_the_machine_go_and_nothing_else(text: str, left: str | None) -> None:
    assert pathless({"k": [text]}) == {"k": [text if left is None else left]}


def test_what_is_committed_has_no_paths_of_a_machine() -> None:
    files = sorted(FOLDER.glob("*.json"))
    assert files
    for file in files:
        assert not PATH.search(json.dumps(json.loads(file.read_text(encoding="utf-8")), ensure_ascii=False)), file.name
        assert file.stat().st_size < 200_000, file.name
