"""A plan from a measured curve, and what cannot be planned."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import capacity
from bench.__main__ import main
from bench.simulated import planning
from bench.simulated.curves import add_curve_options, source_of

TIMINGS = [
    {"component": "unet", "size": "64x64", "rows": 2, "median_ms": 100.0},
    {"component": "unet", "size": "64x64", "rows": 8, "median_ms": 200.0},
    {"component": "text_encoder", "size": "64x64", "rows": 1, "median_ms": 3.0},
    {"component": "vae_decoder", "size": "64x64", "rows": 1, "median_ms": 20.0},
    {"component": "unet", "size": "128x128", "rows": 2, "median_ms": 400.0},
    {"component": "vae_decoder", "size": "128x128", "rows": 2, "median_ms": 90.0},
]
QUICK = ["--steps", "2", "--requests", "20", "--seeds", "1", "--processes", "1", "--max-rows", "8"]

# In which one server's load is found, and a load for thousands of servers is not.
SECONDS = 20.0


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LEAST_REQUESTS", 100)


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    path = tmp_path / "offline.json"
    content = {"checkpoint": "tests/fake", "fingerprint": "0" * 64, "provider": "cpu", "timings": TIMINGS}
    path.write_text(json.dumps(content))
    return path


def source(*texts: str) -> Any:
    parser = argparse.ArgumentParser()
    add_curve_options(parser)
    parser.add_argument("--max-rows", type=int, default=16)
    return source_of(parser.parse_args(texts))


def test_a_file_tells_the_curve_and_what_an_image_takes_besides(curve: Path) -> None:
    small, large = (source("--curve", str(curve), "--curve-size", size) for size in ("64x64", "128x128"))
    assert small.points == ((2, 0.1), (8, 0.2))
    assert (small.encode_seconds, small.decode_seconds) == pytest.approx((0.006, 0.02))
    assert (large.encode_seconds, large.decode_seconds) == pytest.approx((0.006, 0.045))


def test_a_curve_may_be_written_or_modelled() -> None:
    assert source("--step-seconds", "16:0.2,2:0.05").points == ((2, 0.05), (16, 0.2))
    assert source("--accelerator", "h100").points[-1] == (16, pytest.approx(0.032, abs=1e-4))


def test_a_plan(curve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "capacity.json"
    load = ["--rate", "4,12", "--slo", "3", "--batchers", "in_flight,static"]
    assert main(["capacity", "--curve", str(curve), "--curve-size", "64x64", *load, *QUICK, "--json", str(kept)]) == 0
    result = json.loads(kept.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert "servers" in lines[0]
    assert sum("in_flight" in line for line in lines[:-1]) == 3
    plan = {(one["batcher"], one["rate"]): one for one in result["plan"]}
    assert set(plan) == {(batcher, rate) for batcher in ("in_flight", "static") for rate in (4.0, 12.0)}
    assert plan["in_flight", 4.0]["servers"] <= plan["in_flight", 12.0]["servers"]
    assert result["measures"]["servers for 12/s at 3x, in_flight"]["value"] == plan["in_flight", 12.0]["servers"]
    assert result["measures"]["one server, in_flight, at 3x"]["value"] > 0
    servers, latencies = result["plots"]
    assert servers["series"]["in_flight"] == [[rate, plan["in_flight", rate]["servers"]] for rate in (4.0, 12.0)]
    assert all(len(points) == len(capacity.PARTS) for points in latencies["series"].values())
    assert result["settings"]["costs_ms"] == {
        "call_ms": 0, "request_ms": 0, "encode_ms": pytest.approx(6), "decode_ms": pytest.approx(20)
    }  # fmt: skip
    assert result["settings"]["balancer"] == "least_outstanding"


def test_loads_follow_from_what_one_server_takes(capsys: pytest.CaptureFixture[str]) -> None:
    device = ["--step-seconds", "2:0.1,8:0.2", "--slo-ms", "900", "--batchers", "in_flight"]
    assert main(["capacity", *device, *QUICK]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    one = result["one_server"][0]["rate"]
    assert [each["rate"] for each in result["plan"]] == pytest.approx([one, 2 * one, 4 * one, 8 * one], rel=0.01)
    assert result["plan"][0]["servers"] <= 2
    assert any("not a measurement" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "0"], "--rate has 0: give requests a second above 0"),
        (["--rate", "-3"], "--rate has -3"),
        (["--slo-ms", "50"], "nothing meets 50 ms: even alone the longest requests take 200 ms"),
        (["--slo", "0.9"], "nothing meets 0.9x"),
        (["--call-ms", "-1"], "--call-ms is -1: give no less than 0"),
        (["--batchers", "magic"], "--batchers has magic: give some of in_flight, static, serial"),
        (["--most-servers", "0"], "--most-servers is 0"),
        (["--workload", "nothing"], "--workload is nothing"),
        (["--curve-size", "64x64"], "leave it out"),
    ],
)
def test_what_cannot_be_planned_is_told(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", "--step-seconds", "2:0.1,8:0.2", *QUICK, *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("capacity: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_load_for_too_many_servers_takes_nothing_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "capacity.json"
    load = ["--rate", "2,100", "--most-servers", "2", "--batchers", "in_flight", "--slo", "3", "--slo-ms", "900"]
    assert main(["capacity", "--step-seconds", "2:0.1,8:0.2", *QUICK, *load, "--json", str(kept)]) == 1
    result = json.loads(kept.read_text())
    assert {(one["rate"], one["slo"]) for one in result["plan"]} == {(2.0, "3x"), (2.0, "900 ms")}
    assert len(result["one_server"]) == 2
    assert not result["partial"]
    assert len(result["failures"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("capacity: 2 servers are not enough for 100 requests/s at ") for line in lines)
    assert "raise --most-servers" in lines[1]


@pytest.mark.parametrize(("place", "plans"), [("_planned", 0), ("tails", 2)])
def test_what_was_simulated_before_an_interrupt_is_kept(
    place: str, plans: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(capacity, place, interrupted)
    kept = tmp_path / "capacity.json"
    arguments = ["--step-seconds", "2:0.1,8:0.2", *QUICK, "--rate", "2,4", "--batchers", "in_flight"]
    assert main(["capacity", *arguments, "--json", str(kept)]) == 1
    result = json.loads(kept.read_text())
    assert (result["partial"], result["failures"], len(result["plan"])) == (True, ["interrupted"], plans)
    assert result["measures"]["one server, in_flight, at 3x"]["value"] > 0
    assert "one server, in_flight, at 3x" in capsys.readouterr().out
    monkeypatch.setattr(capacity, "one_server", interrupted)
    assert main(["capacity", *arguments]) == 130


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_keeps_what_there_is(tmp_path: Path) -> None:
    """A plan of hours, interrupted when one server's load is known."""
    kept = tmp_path / "capacity.json"
    load = ["--rate", "4,3000", "--batchers", "in_flight", "--requests", "20", "--seeds", "1", "--most-servers", "9999"]
    command = [sys.executable, "-m", "bench", "capacity", "--step-seconds", "2:0.1,8:0.2", *load, "--processes", "2"]
    process = subprocess.Popen([*command, "--json", str(kept)], stderr=subprocess.PIPE, text=True, process_group=0)
    time.sleep(SECONDS)
    os.killpg(process.pid, signal.SIGINT)
    # Its processes have the other end of the pipe too, so all of them have ended when it is closed.
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (1, "capacity: interrupted\n")
    result = json.loads(kept.read_text())
    assert result["partial"]
    assert result["measures"]["one server, in_flight, at 3x"]["value"] > 0


@pytest.mark.parametrize("text", ["2", "2:x", "0:1", "2:0", "2:-1", "", "2:nan"])
def test_points_that_are_none_are_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", "--step-seconds", text]) == 1
    assert "write rows and seconds above 0" in capsys.readouterr().err


def test_files_that_tell_no_curve_are_refused(curve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "x.json"
    other.write_text('{"goodput": 3}')
    for file, more, said in (
        (other, [], "is no result of `bench offline`"),
        (tmp_path / "nothing", [], "cannot be read"),
        (curve, [], "has the unet at 64x64, 128x128: choose one with --curve-size"),
        (curve, ["--curve-size", "77x77"], "has the unet at 64x64, 128x128 and not at 77x77"),
    ):
        assert main(["capacity", "--curve", str(file), *more]) == 1
        assert said in capsys.readouterr().err
