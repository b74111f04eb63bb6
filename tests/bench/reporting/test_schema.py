"""What is written is what the schema says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench import __main__ as bench
from bench.reporting.keeping import FOLDER
from bench.reporting.measures import Measure, Plot
from bench.reporting.results import SCHEMA
from tests.written_results import written

FILE = Path(bench.__file__).parent / "reporting" / "schema.json"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == SCHEMA
    return jsonschema.Draft202012Validator(schema)


def _strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_everything_that_can_be_told_is_valid(validator: Any, tmp_path: Path) -> None:
    measures = [
        Measure.median("a", [1.0, math.inf, 2.0], "ms", "lower"),
        Measure("b", math.nan, low=math.nan, high=1.0),
        Measure("c", 3, "images/s", "higher", low=2, high=4),
    ]
    plots = [Plot("p", "timeline", "x", "y", {"s": [(n, 1) for n in range(5000)], "t": [(0, math.nan)]}, True)]
    validator.validate(_strict(written(tmp_path / "a.json", measures, plots).read_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": SCHEMA + 1},
        {"date": None},
        {"measures": {"m": {"value": 1, "unit": ""}}},
        {"measures": {"m": {"value": 1, "unit": "", "better": None, "low": 1}}},
        {"plots": [{"title": "t", "kind": "pie", "x": "", "y": "", "series": {}}]},
    ],
)
def test_what_is_not_so_is_invalid(validator: Any, change: dict[str, Any], tmp_path: Path) -> None:
    result = {**json.loads(written(tmp_path / "a.json").read_text()), **change}
    assert not validator.is_valid(result)


def test_quick_programs_write_what_the_schema_says(validator: Any, tmp_path: Path) -> None:
    host, page, changes = (tmp_path / name for name in ("host.json", "host.html", "changes.json"))
    assert bench.main(["host", "--repeats", "3", "--waiting", "9", "--json", str(host), "--html", str(page)]) == 0
    assert bench.main(["compare", str(host), str(host), "--json", str(changes)]) == 0
    for file in (host, changes):
        validator.validate(_strict(file.read_text()))
    assert json.loads(host.read_text())["measures"]
    assert "<svg" in page.read_text()
    assert set(json.loads(changes.read_text())["verdicts"]) == {"same"}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.name)
def test_committed_results_are_valid(validator: Any, file: Path) -> None:
    validator.validate(_strict(file.read_text(encoding="utf-8")))
