"""What is read back is what was told; what is no result is refused in a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench.reporting.measures import Measure, Plot, told
from bench.reporting.reading import parsed, read
from bench.reporting.results import SCHEMA, described
from server.errors import ServerError
from tests.written_results import written


def test_figures_and_plots_come_back(tmp_path: Path) -> None:
    measures = [
        Measure("p99", 9.5, "ms", "lower", samples=(9.0, 9.5, 11.0)),
        Measure("rate", 4.0, "images/s", "higher", low=3.5, high=4.5),
        Measure("lost", math.nan),
    ]
    plots = [Plot("steps", "curve", "rows", "ms", {"unet": [(2.0, 5.0), (16.0, 9.0)]}, logarithmic=True)]
    result = read(written(tmp_path / "a.json", measures, plots, failures=["one was lost"], partial=True))
    assert [result.measures[name] for name in ("p99", "rate")] == measures[:2]
    assert math.isnan(result.measures["lost"].value)
    assert result.plots == plots
    assert (result.program, result.partial, result.failures) == ("online", True, ("one was lost",))
    assert result.command.startswith("python -m bench online --json")


def _broken(**changes: Any) -> dict[str, Any]:
    plot = Plot("p", "curve", "x", "y", {"s": [(1, 2)]})
    result: dict[str, Any] = json.loads(json.dumps(described("host", [], told([Measure("m", 1.0)], [plot]))))
    return {**result, **changes}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "the whole is a list, not an object"),
        ({}, "schema is missing, not 1"),
        (_broken(schema=SCHEMA + 1), "update this checkout"),
        (_broken(command=None), "command is missing, not a text"),
        (_broken(partial="no"), "partial is no, not true or false"),
        (_broken(environment=3), "environment is 3, not an object"),
        (_broken(measures={"m": 4}), "measure 'm' is 4, not an object"),
        (_broken(measures={"m": {"value": "fast"}}), "value of measure 'm' is fast, not a number"),
        (_broken(measures={"m": {"value": 10**400}}), "value of measure 'm' is too large, not a number"),
        (_broken(measures={"m": {"value": 1, "better": "faster"}}), "one of lower, higher, None"),
        (_broken(plots=[{"title": "p", "kind": "pie"}]), "kind of plot 'p' is pie, not one of curve"),
        (
            _broken(plots=[{"title": "p", "kind": "curve", "x": "", "y": "", "series": {"s": [[1]]}}]),
            "not a pair of numbers",
        ),
    ],
)
def test_what_is_no_result_is_refused_by_name(found: Any, words: str) -> None:
    with pytest.raises(ServerError, match=r"^odd\.json ") as error:
        parsed(found, "odd.json")
    assert words in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ServerError, match=r"a\.json is no JSON; give"):
        read(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"a\.json cannot be read: No such file"):
        read(tmp_path / "a.json")
