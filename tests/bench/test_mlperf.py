"""LoadGen on a real server, to its end and beyond the server's."""

import argparse
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import mlperf
from bench.__main__ import main
from bench.loadgen import accuracy, performance
from bench.loadgen.answering import Answered, picture_of
from bench.loadgen.rules import NEGATIVE_PROMPT, differences
from bench.serving import fake_config, started
from server.errors import ServerError

STEP_SECONDS = ((2, 0.002), (16, 0.004))


def arguments(*texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    mlperf.add_options(parser)
    return parser.parse_args(["--scenario", "Server", *texts])


def test_without_options_the_rules_hold_and_prompts_are_fewer() -> None:
    planned = mlperf.planned_run(arguments())
    assert set(differences(planned.rules, planned.used)) == {"prompts"}
    assert planned.folder == Path("out/mlperf/Server")
    settings = replace(planned, target=3.0).play.settings
    assert (settings["server_target_qps"], settings["server_target_latency_ns"]) == (3.0, 20_000_000_000)
    assert settings["min_duration_ms"] == 600_000


def test_options_replace_what_is_scaled() -> None:
    used = mlperf.planned_run(arguments("--scale", "0.1", "--samples", "7", "--latency", "0.5", "--guidance", "1")).used
    assert (used.duration, used.samples, used.latency, used.percentile) == (60.0, 7, 0.5, 0.99)
    assert (used.guidance, used.negative_prompt) == (1.0, "")


def test_requests_are_those_of_the_reference() -> None:
    assert mlperf.fields_of(arguments("--size", "192")) == {
        "num_inference_steps": 20,
        "guidance_scale": 8.0,
        "sampler": "euler",
        "seed": 0,
        "negative_prompt": NEGATIVE_PROMPT,
        "height": 192,
        "width": 192,
    }
    assert "negative_prompt" not in mlperf.fields_of(arguments("--guidance", "1"))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["--scale", "0"], "--scale is 0.0: give a number above 0"),
        (["--target-qps", "-1"], "--target-qps is -1.0"),
        (["--scale", "inf"], "--scale is inf"),
        (["--duration", "nan"], "--duration is nan"),
        (["--percentile", "99"], "give a part of 1"),
        (["--warm-up", "-1"], "give 0 or more"),
        (["--scenario", "Offline", "--latency", "3"], "Offline has no bound"),
    ],
)
def test_numbers_that_none_can_be(texts: list[str], words: str) -> None:
    with pytest.raises(ServerError, match=words):
        mlperf.planned_run(arguments(*texts))


def test_what_an_earlier_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    planned = replace(mlperf.planned_run(arguments()), folder=tmp_path)
    planned.images.mkdir()
    for name in ("mlperf_log_summary.txt", "notes.txt", "images/00003.png", "images/mine.png"):
        (tmp_path / name).touch()
    mlperf.forget(planned)
    assert {file.name for file in tmp_path.rglob("*.*")} == {"notes.txt", "mine.png"}


def test_open_queries_over_time() -> None:
    answered = [Answered(0, 10.0, 12.0), Answered(1, 11.0, 14.0)]
    assert performance.open_queries(answered) == [(0.0, 1.0), (1.0, 2.0), (2.0, 1.0), (4.0, 0.0)]


def test_the_judge_scores_held_out_captions_only(tmp_path: Path) -> None:
    prompt = "a large orange triangle on the right on a cyan background"
    Image.fromarray(np.full((128, 128, 3), (0, 255, 255), np.uint8)).save(picture_of(tmp_path, 0))
    scores = accuracy.judged([prompt, "a red cat"], {0}, tmp_path)
    assert (scores["background"], scores["colour"], scores["shape"]) == (1, 0, 0)
    assert accuracy.judged([prompt, "a red cat"], {0, 1}, tmp_path) == {}


@pytest.mark.triton
def test_a_short_run_and_one_that_outlives_its_server(fake_export: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    def played(*more: str) -> tuple[int, dict[str, Any]]:
        common = ["mlperf", "--folder", str(tmp_path / "logs"), "--url", server.grpc_url, "--json", str(file)]
        code = main([*common, "--size", "64", "--steps", "4", "--warm-up", "2", *more])
        return code, json.loads(file.read_text())

    with started(fake_config(fake_export, STEP_SECONDS), tmp_path / "log") as server:
        code, offline = played("--scenario", "Offline", "--duration", "0.05", "--samples", "30")
        assert (code, offline["valid"], offline["reasons"]) == (0, True, [])
        assert offline["queries"]["answered"] >= 30
        assert offline["scaled"]["steps"] == {"rule": 20, "used": 4}
        ours, theirs = offline["latency_ms"]["p50"], offline["measures"]["Offline latency p50"]["value"]
        assert 0.5 * ours < theirs < 2 * ours + 100
        assert (tmp_path / "logs" / "Offline" / "mlperf_log_detail.txt").stat().st_size > 1000

        code, single = played("--scenario", "SingleStream", "--duration", "0.3", "--samples", "80")
        assert (code, single["valid"], single["reasons"]) == (0, True, [])
        assert single["queries"]["answered"] >= 80
        assert list(single["measures"])[:3] == [
            f"SingleStream {what}" for what in ("throughput", "latency p50", "latency p90")
        ]
        # One at a time: as many a second as there is room for, one after the other.
        seconds = 1e-3 * single["latency_ms"]["mean"]
        assert 0.5 / seconds < single["measures"]["SingleStream throughput"]["value"] < 1.1 / seconds
        assert single["target_qps"] == pytest.approx(2 / single["seconds_alone"])

        limits = ["--percentile", "0.9", "--latency", "2"]
        length = ["--duration", "0.5", "--samples", "100", "--target-qps", "150"]
        code, served = played("--scenario", "Server", *limits, *length, "--require-valid")
        assert (code, served["valid"], served["reasons"]) == (0, True, [])
        assert served["queries"]["answered"] >= 100
        assert served["scaled"]["latency"] == {"rule": 20.0, "used": 2.0}
        assert served["measures"]["Server latency p99"]["value"] < 2000
        assert 50 < served["measures"]["Server throughput"]["value"] < 300

        code, scored = played("--scenario", "SingleStream", "--accuracy", "--samples", "3", "--target-qps", "5")
        assert (code, scored["queries"], scored["mode"]) == (0, {"answered": 3, "failed": 0}, "AccuracyOnly")
        assert set(scored["score"]) == {"colour", "background", "shape"}
        assert len(list(Path(scored["images"]).glob("*.png"))) == 3
        log = json.loads((tmp_path / "logs" / "SingleStream" / "mlperf_log_accuracy.json").read_text())
        assert {len(entry["data"]) for entry in log} == {64}

        killing = threading.Timer(2.0, server.kill)
        killing.start()
        code, broken = played("--scenario", "Server", "--target-qps", "30")
        killing.join()
    assert (code, broken["partial"], broken["valid"], broken["measures"]) == (1, True, False, {})
    assert broken["queries"]["answered"] > 5
    assert "is gone" in broken["failures"][0]


def test_no_server_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["mlperf", "--scenario", "Offline", "--url", "127.0.0.1:1", "--warm-up", "1", "--folder", str(tmp_path)])
        == 1
    )
    assert "is the server running" in capsys.readouterr().err
