"""The figures' targets, and one short run of everything on a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import latency
from bench.__main__ import main
from bench.latency import PARTS, targets
from bench.placement import IN_PROCESS, Seconds, figures, summary
from bench.reactions.overhead import added
from server.errors import ServerError


def test_what_is_added_is_the_difference_of_percentiles() -> None:
    theirs = [0.010 + 0.001 * n for n in range(10)]
    ours = [seconds + 0.002 for seconds in theirs]
    assert added(ours, theirs) == {"p50": 2.0, "median_of_pairs": 2.0}
    assert added(10 * ours, 10 * theirs) == {"p50": 2.0, "p99": 2.0, "median_of_pairs": 2.0}


def ended(p99: float, largest: float = 100.0, count: int = 100) -> dict[str, float]:
    """Of what `milliseconds` gives, what targets look at."""
    return {"count": count, "p99": p99, "max": largest}


def test_targets_are_compared() -> None:
    found = {
        "overhead": {"added_ms": {"unary": {"p50": 1.5}}},
        "cancel": {"step_ms": 11.5, "freed_ms": {"stream": ended(61.0), "id": ended(62.0)}},
        "refusal": {"full": {"unary, 1 at a time": ended(11.0), "unary, 16 at a time": ended(40.0)}},
        "guest": {"ratio": {"median": 1.2, "worst": 1.6}},
    }
    met = {name: figures["met"] for name, figures in targets(found).items()}
    assert list(met.values()) == [True, True, False, False, True, False]
    assert targets({}) == {}


def test_of_few_the_largest_is_told_as_the_largest() -> None:
    told = {
        count: targets({"deadline": {"running": ended(40.0, 60.0, count)}, "cancel": {"step_ms": 1.0, "freed_ms": {}}})
        for count in (99, 100)
    }
    assert told[99] == {
        "answer after the deadline (running), largest ms": {"value": 60.0, "target": 50.0, "met": False}
    }
    assert told[100] == {"answer after the deadline (running), p99 ms": {"value": 40.0, "target": 50.0, "met": True}}


@pytest.mark.parametrize("ending", [ServerError("the server has gone"), KeyboardInterrupt()])
def test_parts_before_a_failure_are_kept(
    ending: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refusals for a reason too; a failure in the first part leaves nothing to tell."""

    def crowd(*arguments: Any) -> None:
        *_, kept, found = arguments
        kept["refusal, full"] = {"unary, 1 at a time": [2.0, 3.0]}
        found["refusal"] = {"full": {"unary, 1 at a time": ended(3.0, 3.0, count=2)}}
        raise ending

    def overhead(*_: Any) -> dict[str, Any]:
        return {"added_ms": {"unary": {"p50": 1.5}}}

    def leaving(*_: Any) -> None:
        raise ending

    monkeypatch.setattr(latency, "overhead", overhead)
    monkeypatch.setattr(latency, "crowd", crowd)
    monkeypatch.setattr(latency, "leaving", leaving)
    kept = tmp_path / "latency.json"
    words = str(ending) or "interrupted"
    assert main(["latency", "--parts", "overhead,refusal,guest", "--json", str(kept)]) == 1
    found = json.loads(kept.read_text())
    assert (found["partial"], found["failures"]) == (True, [words])
    assert set(found["measures"]) == {
        *("added latency of unary requests, p50", "refusal (full, unary, 1 at a time), largest")
    }
    assert [plot["title"] for plot in found["plots"]] == ["Refusal, full"]
    assert capsys.readouterr().err == f"latency: {words}\n"
    assert main(["latency", "--parts", "cancel,guest"]) == (130 if isinstance(ending, KeyboardInterrupt) else 1)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["--parts", "guest,ghost"], "--parts has ghost"), (["--repeats", "0"], "give at least 1")],
)
def test_bad_options_are_told_in_a_sentence(texts: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", *texts]) == 1
    assert message in capsys.readouterr().err


def test_placements_are_compared_with_all_in_process() -> None:
    own = Seconds(image=[0.1, 0.2, 0.3], before=[0.01] * 3, step=[0.005] * 3, after=[0.02] * 3)
    moved = Seconds(image=[0.3] * 3, before=[0.02] * 3, step=[0.006] * 3, after=[0.02] * 3)
    found = summary({IN_PROCESS: own, "unet": moved})
    assert found["unet"] == {
        "request_ms": 300.0,
        "step_ms": 6.0,
        "before_first_step_ms": 20.0,
        "decode_ms": 20.0,
        "request_ratio": 1.5,
        "step_ratio": 1.2,
    }
    assert found[IN_PROCESS]["request_ratio"] == 1.0


def test_placements_are_compared_turn_by_turn() -> None:
    own = Seconds(image=[0.1, 0.2, 0.4], step=[0.005] * 3)
    moved = Seconds(image=[0.2, 0.3, 0.4], step=[0.006] * 3)
    measures, (plot,) = figures({IN_PROCESS: own, "unet": moved})
    values = {measure.name: measure.value for measure in measures}
    assert values["request, unet over in process"] == pytest.approx(1.5)
    assert values["UNet call, unet over in process"] == pytest.approx(1.2)
    assert f"request, {IN_PROCESS} over in process" not in values
    assert set(plot.series) == {IN_PROCESS, "unet"}


@pytest.mark.slow
@pytest.mark.triton
def test_a_short_run_of_every_part(fake_export: Path, tmp_path: Path) -> None:
    result = tmp_path / "latency.json"
    model = ["--model", str(fake_export), "--log", str(tmp_path / "log"), "--json", str(result)]
    assert main(["latency", "--repeats", "2", *model]) == 0
    found = json.loads(result.read_text())
    assert set(PARTS) <= set(found)
    assert 0 < found["overhead"]["added_ms"]["unary"]["p50"] < 50
    assert all(figures["count"] == 2 for figures in found["cancel"]["freed_ms"].values())
    assert all(0 <= figures["p50"] < 500 for figures in found["deadline"].values())
    for flood in found["refusal"]["full"].values():
        assert flood["told_when_to_retry"] == 1.0
    assert found["guest"]["companions_rows_per_call"] > 8
    assert len(found["targets"]) == 1 + 3 + 12 + 2 + 2
    assert {"added latency (stream), median", "rows freed after leaving (id), largest"} <= set(found["measures"])
    assert len(found["plots"]) == 2 + 1 + 3 + 1 + 1


@pytest.mark.slow
@pytest.mark.triton
def test_a_short_run_of_all_placements(fake_export: Path, tmp_path: Path) -> None:
    result = tmp_path / "placement.json"
    options = ["--provider", "fake", "--repeats", "2", "--images", "2", "--steps", "2"]
    model = ["--model", str(fake_export), "--out", str(tmp_path), "--json", str(result)]
    assert main(["placement", *options, *model]) == 0
    found = json.loads(result.read_text())["placements"]
    assert set(found) == {"in_process", "text_encoder", "unet", "vae_decoder"}
    assert found["unet"]["step_ms"] > found["in_process"]["step_ms"]
