"""The sender's own lateness: who is measured, and what holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.harness import Setting, _holds


def row(rate: float, p99: float | None, setting: str = "echo, 1 sending") -> dict[str, object]:
    return {"setting": setting, "rate": rate, "late_sending_ms": {} if p99 is None else {"p99": p99}}


@pytest.mark.parametrize(
    ("late", "reached"),
    [([1, 2, 9], 500), ([1, 9, 2], 250), ([9, 1, 1], 0), ([5, 5, 5], 1000), ([1, None, 1], 250)],
)
def test_a_rate_holds_when_all_lower_ones_do(late: list[float | None], reached: float) -> None:
    rows = [row(rate, p99) for rate, p99 in zip((1000, 250, 500), (late[2], late[0], late[1]), strict=True)]
    rows.append(row(4000, 1, "echo, 2 sending"))
    assert _holds(Setting("echo", 1), rows, 5.0) == reached


def test_the_harness_measures_itself(tmp_path: Path) -> None:
    result = tmp_path / "harness.json"
    rates = ["--rates", "50,100", "--seconds", "0.5", "--processes", "1", "--goal-ms", "60000"]
    assert main(["harness", "--against", "echo", *rates, "--json", str(result)]) == 0
    found = json.loads(result.read_text())
    assert [row["rate"] for row in found["rates"]] == [50, 100]
    for row in found["rates"]:
        assert row["outcomes"] == {"ok": row["late_sending_ms"]["count"]}
        assert row["cpu_us_per_request"] > 0
    assert found["holds_to_requests_per_second"] == {"echo, 1 sending": 100}
    assert found["measures"]["highest rate within 60000 ms, echo, 1 sending"]["value"] == 100


def test_what_was_measured_is_kept_when_the_next_server_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "harness.json"
    quick = ["--rates", "50", "--seconds", "0.2", "--processes", "1", "--model", str(tmp_path / "none")]
    assert main(["harness", *quick, "--json", str(result)]) == 1
    found = json.loads(result.read_text())
    assert found["partial"] is True
    assert [row["setting"] for row in found["rates"]] == ["echo, 1 sending"]
    assert found["failures"][0].startswith("fake: ")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "0"], "--rates is 0.0: give a number above 0"),
        (["--processes", "-1"], "--processes is -1"),
        (["--against", "nobody"], "--against is nobody: give echo or fake"),
    ],
)
def test_bad_options_are_told(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harness", *options]) == 1
    assert message in capsys.readouterr().err
