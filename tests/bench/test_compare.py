"""What a threshold finds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench import compare
from bench.__main__ import main
from bench.reporting.measures import Measure
from tests.written_results import written


def options(*texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare.add_options(parser)
    return parser.parse_args(["a.json", "b.json", *texts])


@pytest.mark.parametrize(
    ("texts", "tolerance"),
    [
        ([], 0.1),
        (["--threshold", "5%"], 0.05),
        (["--threshold", "30%"], 0.1),
        (["--tolerance", "20%"], 0.2),
        (["--tolerance", "20%", "--threshold", "5%"], 0.2),
    ],
)
def test_nothing_gets_worse_unseen_by_more_than_the_threshold(texts: list[str], tolerance: float) -> None:
    assert compare.tolerance_of(options(*texts)) == tolerance


def test_a_figure_without_a_spread_is_judged_by_the_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        written(tmp_path / f"{name}.json", [Measure("rows read", value, "ms", "lower")])
        for name, value in (("a", 100.0), ("b", 107.0))
    )
    assert main(["compare", str(a), str(b)]) == 0
    assert main(["compare", str(a), str(b), "--threshold", "5%"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["failures"] == ["rows read is worse by 7 %, from 100 to 107 ms"]
    assert found["settings"]["tolerance"] == 0.05


def test_a_figure_of_few_requests_is_not_worse_by_their_chance(tmp_path: Path) -> None:
    a, b = (
        written(tmp_path / f"{name}.json", [Measure("throughput", value, "images/s", "higher", low=low, high=high)])
        for name, value, low, high in (("a", 2.0, 1.4, 2.6), ("b", 1.7, 1.2, 2.2))
    )
    assert main(["compare", str(a), str(b), "--threshold", "5%"]) == 0
