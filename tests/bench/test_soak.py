"""What counts as a leak, and short soaks of a real server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench import leaks
from bench.__main__ import main
from bench.leaks import Sample


def samples(*values: float, name: str = "tritonserver fds", start: int = 1) -> list[Sample]:
    return [Sample(start, 100 * (n + 1), {name: value}) for n, value in enumerate(values)]


def test_growth_is_first_last_and_slope() -> None:
    grown = leaks.growth(samples(50, 52, 54, 56))
    assert grown == {"tritonserver fds": {"first": 50, "last": 56, "most": 56, "per_1000_requests": 20}}
    assert leaks.growth([]) == {}


def test_only_the_last_start_counts_and_only_once_it_is_warm() -> None:
    before, after = samples(10, 20, 30, start=1), samples(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, start=2)
    kept = leaks.of_last_start([*before, *after])
    assert [sample.held["tritonserver fds"] for sample in kept] == [4, 5, 6, 7, 8, 9, 10]
    assert leaks.of_last_start([]) == []


@pytest.mark.parametrize(
    ("name", "values", "leaking"),
    [
        ("tritonserver fds", (50, 58), False),
        ("tritonserver fds", (50, 59), True),
        ("tritonserver fds", (59, 20), False),
        ("stable_diffusion threads", (10, 30), True),
        ("stable_diffusion own mib", (300, 320), False),
        ("stable_diffusion own mib", (300, 400), True),
        ("stable_diffusion resident mib", (300, 400), False),
        ("shared regions", (4, 5), True),
        ("running jobs", (0, 0), False),
    ],
)
def test_what_is_a_leak(name: str, values: tuple[float, ...], leaking: bool) -> None:
    found = leaks.leaks(leaks.growth(samples(*values, name=name)))
    assert bool(found) == leaking
    assert all(name in sentence for sentence in found)


def test_what_a_process_holds() -> None:
    held = leaks.process_holds("ours", os.getpid())
    assert held["ours own mib"] > 5
    assert held["ours resident mib"] >= held["ours own mib"]
    assert held["ours fds"] > 2
    assert held["ours threads"] >= 1


def test_what_shared_memory_holds(tmp_path: Path) -> None:
    region = tmp_path / "region"
    region.write_bytes(bytes(1 << 20))
    assert leaks.memory_holds([region]) == {"shared mib": pytest.approx(1, abs=0.1), "shared regions": 1}
    assert leaks.memory_holds([]) == {"shared mib": 0, "shared regions": 0}


def test_bad_options_are_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soak", "--requests", "0"]) == 1
    assert "must be at least 1" in capsys.readouterr().err


def soaked(model: Path, folder: Path, *options: str) -> dict[str, Any]:
    result = folder / "soak.json"
    code = main(["soak", "--model", str(model), "--log", str(folder / "log"), "--json", str(result), *options])
    found: dict[str, Any] = json.loads(result.read_text())
    assert found["failures"] == []
    assert code == 0
    return found


@pytest.mark.triton
def test_a_hundred_requests(embedded_export: Path, tmp_path: Path) -> None:
    found = soaked(embedded_export, tmp_path, "--requests", "100", "--kills", "0", "--samples", "2")
    assert sum(found["outcomes"].values()) == 100
    assert found["outcomes"]["ok"] > 50
    assert found["outcomes"]["invalid"] == found["malformed"] > 0


@pytest.mark.triton
@pytest.mark.slow
def test_requests_around_a_kill(embedded_export: Path, tmp_path: Path) -> None:
    options = ("--requests", "300", "--kills", "1", "--samples", "6", "--concurrency", "8")
    found = soaked(embedded_export, tmp_path, *options)
    assert (found["kills"], found["starts"]) == (1, 2)
    assert found["outcomes"]["disconnected"] > 0
    assert found["outcomes"]["ok"] > 100
