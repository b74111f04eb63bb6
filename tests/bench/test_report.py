"""Pages, comparisons and README from the command line: what is printed, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import host
from bench.__main__ import main
from bench.reporting.measures import Measure
from bench.reporting.readme import BEGIN, END
from tests.written_results import written

Captured = pytest.CaptureFixture[str]


def _last(captured: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(captured.splitlines()[-1])
    return found


def test_a_report_has_what_it_can_read_and_names_the_rest(tmp_path: Path, capsys: Captured) -> None:
    good, empty, page = (
        written(tmp_path / "a.json", [Measure("m", 1.0)]),
        tmp_path / "b.json",
        tmp_path / "r" / "r.html",
    )
    empty.touch()
    assert main(["report", str(good), "--html", str(page)]) == 0
    assert main(["report", str(good), str(empty), "--html", str(page)]) == 1
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert "b.json is no JSON" in output.err
    assert "b.json is no JSON" in page.read_text()
    assert _last(output.out)["results"] == [str(good)]


def test_a_report_of_nothing_is_none(tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "r.html"
    assert main(["report", str(tmp_path / "a.json"), "--html", str(page)]) == 1
    assert "a.json cannot be read" in capsys.readouterr().err
    assert not page.exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, capsys: Captured) -> None:
    good = written(tmp_path / "a.json", [Measure("m", 1.0)])
    assert main(["report", str(good), "--html", str(tmp_path)]) == 1
    assert main(["compare", str(good), str(good), "--json", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("Is a directory") == 2


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_place_is_looked_at_before_a_measurement(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    measured: list[object] = []
    monkeypatch.setattr(host, "run", measured.append)
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "result"):
        assert main(["host", option, str(place)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert measured == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 0),
        (["--threshold", "5%"], 1),
        (["--threshold", "0.5"], 0),
        (["--threshold", "5%", "--tolerance", "50%"], 0),
    ],
)
def test_compare_fails_only_beyond_a_threshold(options: list[str], code: int, tmp_path: Path, capsys: Captured) -> None:
    a = written(tmp_path / "a.json", [Measure("latency", 10.0, "ms", "lower"), Measure("gone", 1.0)])
    b = written(tmp_path / "b.json", [Measure("latency", 13.0, "ms", "lower")], partial=True)
    assert main(["compare", str(a), str(b), *options]) == code
    output = capsys.readouterr()
    assert "warning: B is partial" in output.out
    # What changed comes first.
    assert (output.out.index("latency") < output.out.index("gone")) == ("--tolerance" not in options)
    found = _last(output.out)
    assert found["program"] == "compare"
    assert bool(output.err) == bool(code) == bool(found["failures"])


def test_compare_refuses_what_is_no_result(tmp_path: Path, capsys: Captured) -> None:
    good, odd = written(tmp_path / "a.json"), tmp_path / "odd.json"
    odd.write_text('{"schema": 99}')
    assert main(["compare", str(good), str(odd)]) == 1
    assert capsys.readouterr().err.strip().endswith("odd.json has schema 99, and 1 is the newest known here: "
                                                    "update this checkout")  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(good), str(good), "--threshold", "much"])
    assert ended.value.code == 2
    assert "much is no part: write such as 5% or 0.05" in capsys.readouterr().err


def test_figures_are_kept_written_and_checked(tmp_path: Path, capsys: Captured) -> None:
    figures = ["figures", "--results", str(tmp_path / "kept")]
    document = tmp_path / "README.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    result = written(tmp_path / "a.json", [Measure("m", 1.5, "ms"), Measure("n", 2.0)])
    assert main([*figures, "--check", str(document)]) == 1
    keep = [*figures, "--keep", str(result), "--only", "m", "--note", "a busy machine"]
    assert main([*keep, "--write", str(document)]) == 0
    assert main([*figures, "--check", str(document)]) == 0
    assert "| m | 1.5 ms |" in document.read_text()
    assert "a busy machine" in document.read_text()
    assert main(figures) == 0
    output = capsys.readouterr()
    assert "| m | 1.5 ms |" in output.out
    assert output.err.count("run `python -m bench figures --write") == 1
    assert main([*figures, "--note", "x"]) == 1
    assert "add --keep RESULT.json" in capsys.readouterr().err
