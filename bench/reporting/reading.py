"""Results as they are read back: from a file, checked on the way, so that nobody downstream meets half of one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

from bench.reporting.measures import Better, Kind, Measure, Plot
from bench.reporting.results import SCHEMA
from server.errors import ServerError

JSON_WORDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", float: "a number"}


@dataclass(frozen=True, slots=True)
class Result:
    """What a program found.

    Attributes:
        name: of the file, or of the program where there is no file.
        note: what its figures should be read with, such as what else the machine did.
        whole: everything that was told, the above included.
    """

    name: str
    program: str
    command: str
    date: str
    partial: bool
    failures: Sequence[str]
    note: str
    measures: Mapping[str, Measure]
    plots: Sequence[Plot]
    environment: Mapping[str, Any]
    whole: Mapping[str, Any]


def read(file: Path) -> Result:
    """The result in a file.

    Raises:
        ServerError: the file cannot be read, or holds none; the text names the file and what is wrong.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ServerError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ServerError(
            f"{file} is no JSON; give a file that a program of `python -m bench` wrote by --json"
        ) from error
    return parsed(found, str(file))


def parsed(found: Any, name: str) -> Result:
    """A result from its JSON.

    Raises:
        ServerError: it is none, or of a newer form than is known here.
    """
    reader = _Reader(name)
    whole = reader.mapping(found, "the whole")
    form = whole.get("schema")
    if isinstance(form, int) and form > SCHEMA:
        raise ServerError(f"{name} has schema {form}, and {SCHEMA} is the newest known here: update this checkout")
    if form != SCHEMA:
        reader.refuse("schema", form, str(SCHEMA))
    return Result(
        name=name,
        program=reader.text(whole.get("program"), "program"),
        command=reader.text(whole.get("command"), "command"),
        date=reader.text(whole.get("date"), "date"),
        partial=reader.truth(whole.get("partial"), "partial"),
        failures=tuple(str(one) for one in reader.sequence(whole.get("failures", ()), "failures")),
        note=reader.text(whole.get("note", ""), "note"),
        measures={key: reader.measure(key, value) for key, value in reader.named(whole, "measures").items()},
        plots=[reader.plot(plot) for plot in reader.sequence(whole.get("plots", ()), "plots")],
        environment=reader.mapping(whole.get("environment"), "environment"),
        whole=whole,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads values of one file; every refusal names it."""

    file: str

    def refuse(self, where: str, came: Any, wanted: str) -> NoReturn:
        kind = next((word for kind, word in JSON_WORDS.items() if isinstance(came, kind)), "missing")
        came = f"{came}"[:40] if isinstance(came, str | float | int) else kind
        raise ServerError(
            f"{self.file} is no result of `python -m bench`: {where} is {came}, not {wanted}; "
            "give a file that was written by --json"
        )

    def mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else self.refuse(where, value, "an object")

    def named(self, whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        return self.mapping(whole.get(name, {}), name)

    def sequence(self, value: Any, where: str) -> Sequence[Any]:
        return value if isinstance(value, list | tuple) else self.refuse(where, value, "a list")

    def text(self, value: Any, where: str) -> str:
        return value if isinstance(value, str) else self.refuse(where, value, "a text")

    def truth(self, value: Any, where: str) -> bool:
        return value if isinstance(value, bool) else self.refuse(where, value, "true or false")

    def one_of(self, value: Any, allowed: tuple[Any, ...], where: str) -> Any:
        return value if value in allowed else self.refuse(where, value, f"one of {', '.join(map(str, allowed))}")

    def number(self, value: Any, where: str) -> float:
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(where, value, "a number")
        try:
            return float(value)
        except OverflowError:
            self.refuse(where, "too large", "a number")

    def measure(self, name: str, value: Any) -> Measure:
        where = f"measure {name!r}"
        figure = self.mapping(value, where)
        bounds = [self.number(figure[end], f"{end} of {where}") if end in figure else None for end in ("low", "high")]
        samples = self.sequence(figure.get("samples", ()), f"samples of {where}")
        return Measure(
            name,
            self.number(figure.get("value"), f"value of {where}"),
            self.text(figure.get("unit", ""), f"unit of {where}"),
            cast(Better | None, self.one_of(figure.get("better"), (*get_args(Better), None), f"better of {where}")),
            tuple(self.number(sample, f"a sample of {where}") for sample in samples),
            *bounds,
        )

    def plot(self, value: Any) -> Plot:
        found = self.mapping(value, "a plot")
        title = self.text(found.get("title"), "title of a plot")
        where = f"of plot {title!r}"
        series = self.named(found, "series")
        return Plot(
            title,
            cast(Kind, self.one_of(found.get("kind"), get_args(Kind), f"kind {where}")),
            self.text(found.get("x"), f"x {where}"),
            self.text(found.get("y"), f"y {where}"),
            {name: [self.point(point, where) for point in self.sequence(points, f"{name} {where}")]
             for name, points in series.items()},
            self.truth(found.get("logarithmic", False), f"logarithmic {where}"),
        )  # fmt: skip

    def point(self, value: Any, where: str) -> tuple[float, float]:
        pair = self.sequence(value, f"a point {where}")
        if len(pair) != 2:
            self.refuse(f"a point {where}", value, "a pair of numbers")
        return self.number(pair[0], f"a point {where}"), self.number(pair[1], f"a point {where}")
