"""Results that stay in the repository: small, and without paths of the machine that they were measured on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.reporting.comparing import asked
from bench.reporting.measures import thinned
from bench.reporting.reading import Result, parsed, read
from bench.reporting.results import ROOT
from server.errors import ServerError

FOLDER = ROOT / "bench" / "results"
SAMPLES, POINTS = 100, 100
# Of what a program tells in its own words, as JSON.
OWN_CHARACTERS = 4000
# Of a figure's value, so that a diff of results shows what changed.
DIGITS = 5
ALWAYS = {"schema", "program", "command", "date", "partial", "failures", "note", "measures", "environment", "settings"}
# An absolute path of two parts or more: neither the end of an address, nor a unit such as images/s.
PATH = re.compile(r"(?<![\w.:/~-])(?:/[\w.+@-]+){2,}/?")


def keep(file: Path, folder: Path = FOLDER, *, only: Sequence[str] = (), note: str | None = None) -> Path:
    """Put a result, stripped, into the folder under its own file's name; says where.

    Args:
        only: patterns of the figures that README tells; none means those that were chosen for the file of this name
            before, or all.
        note: what the figures should be read with; None keeps the one of the result.

    Raises:
        ServerError: the file is no result, is partial, or a pattern fits none of its figures.
    """
    result = read(file)
    if result.partial:
        raise ServerError(f"{file} is partial: measure it to its end, only whole results are kept")
    if not result.measures:
        raise ServerError(f"{file} has no figures to keep: {result.program} told none")
    # By another ending it would not be found again.
    place = folder / f"{file.stem}.json"
    chosen = list(only) or (list(read(place).whole.get("told", ())) if place.exists() else [])
    for pattern in chosen:
        if not any(fnmatchcase(name, pattern) for name in result.measures):
            raise ServerError(f"{pattern!r} fits none of {file}'s figures: {', '.join(result.measures)}")
    whole = stripped(result.whole)
    if chosen:
        whole["told"] = chosen
    if note is not None:
        whole["note"] = note
    folder.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return place


def kept(folder: Path = FOLDER) -> list[Result]:
    """Every result of the folder, by name.

    Raises:
        ServerError: a file is no result.
    """
    return [
        parsed(read(file).whole, file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name)
        for file in sorted(folder.glob("*.json"))
    ]


def told_measures(result: Result) -> list[str]:
    """Names of the figures that were chosen for README, in the result's order; all if none were."""
    patterns = [str(pattern) for pattern in result.whole.get("told", ())] or ["*"]
    return [name for name in result.measures if any(fnmatchcase(name, pattern) for pattern in patterns)]


def stripped(whole: Mapping[str, Any]) -> dict[str, Any]:
    """A result without its bulk: fewer samples and points, nothing of its own that is long, no paths of the machine."""
    small: dict[str, Any] = {}
    left: list[str] = []
    for name, value in whole.items():
        if name == "measures":
            small[name] = {key: _figure(figure) for key, figure in value.items()}
        elif name == "plots":
            small[name] = [_plot(plot) for plot in value]
        elif name == "command":
            small[name] = shlex.join(asked(value))
        elif name in ALWAYS or len(json.dumps(value)) <= OWN_CHARACTERS:
            small[name] = value
        else:
            left.append(name)
    if left:
        small["left_out"] = left
    cleaned: dict[str, Any] = pathless(small)
    return cleaned


def pathless(value: Any) -> Any:
    """The same, absolute paths made relative: to the checkout where they are in it, else their last part."""
    match value:
        case str():
            return PATH.sub(_relative, value)
        case Mapping():
            return {pathless(key): pathless(inner) for key, inner in value.items()}
        case list() | tuple():
            return [pathless(inner) for inner in value]
        case _:
            return value


def _relative(found: re.Match[str]) -> str:
    path = Path(found.group())
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _figure(figure: Mapping[str, Any]) -> dict[str, Any]:
    small = {key: _rounded(value) for key, value in figure.items()}
    if "samples" in figure:
        small["samples"] = [_rounded(sample) for sample in thinned(figure["samples"], SAMPLES)]
    return small


def _plot(plot: Mapping[str, Any]) -> dict[str, Any]:
    series = {
        name: [[_rounded(x), _rounded(y)] for x, y in thinned(points, POINTS)]
        for name, points in plot.get("series", {}).items()
    }
    return {**plot, "series": series}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
