"""A recorded load, read from a CSV file: when each request came, and what it asked as far as that is known.

The first line names the columns. `time` has seconds, or moments as ISO 8601 writes them (2026-01-31T08:00:00.250Z), all
of one kind; the first one is the start. The other columns may be absent, and their cells empty: `steps`, `sampler`,
`guidance`, `size` (192 or 128x192, height first), `prompt`, `client_id`.
"""

from __future__ import annotations

import csv
import datetime
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.traffic.arrivals import Trace
from bench.traffic.mix import Given, Size
from server.errors import ServerError
from server.fields import FIELD_BY_NAME, MAX_SIDE
from server.sampler_names import SAMPLER_BY_NAME

TIME = "time"


def read_trace(file: Path, speed: float = 1.0) -> Trace:
    """The load of a file; lines that are out of order are put in order.

    Raises:
        ServerError: it cannot be read, or a cell does not hold what its column does; file, line and column are named.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            _check_columns(file, reader.fieldnames or ())
            read = [_read_line(file, reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ServerError(f"{file} cannot be read as a trace: {error}; give a CSV file with a column {TIME}") from None
    if not read:
        raise ServerError(f"{file} has no requests: give a line for each, under the names of the columns")
    if len({isinstance(moment, float) for moment, _ in read}) > 1:
        raise ServerError(f"{file}: column {TIME} has seconds and dates: give either")
    read.sort(key=lambda line: line[0])
    start = read[0][0]
    return Trace(file.name, tuple(_since(moment, start) for moment, _ in read), tuple(g for _, g in read), speed)


def _since(moment: Any, start: Any) -> float:
    gap = moment - start
    return float(gap.total_seconds() if isinstance(gap, datetime.timedelta) else gap)


def _check_columns(file: Path, names: Any) -> None:
    known = (TIME, *COLUMNS)
    if TIME not in names:
        raise ServerError(f"{file} has the columns {', '.join(names) or 'of nothing'}: one must be {TIME}")
    if unknown := [name for name in names if name not in known]:
        raise ServerError(f"{file} has a column {unknown[0]!r}: give only {', '.join(known)}")


def _read_line(file: Path, line: int, cells: Mapping[str | None, Any]) -> tuple[Any, Given]:
    if None in cells or None in cells.values():
        raise ServerError(f"{file} line {line} has not as many cells as there are columns: give one for each")

    def cell(name: str, read: Callable[[str], Any], allowed: str) -> Any:
        try:
            return read(cells[name].strip())
        except (ValueError, OverflowError):
            raise ServerError(f"{file} line {line}: {name} is {cells[name][:80]!r}: give {allowed}") from None

    moment = cell(TIME, _moment, "seconds, or a moment such as 2026-01-31T08:00:00Z")
    given = {name: cell(name, *COLUMNS[name]) for name in COLUMNS if cells.get(name, "").strip()}
    return moment, Given(**given)


def _moment(text: str) -> float | datetime.datetime:
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return _finite(float(text))
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise ValueError(seconds)
    return seconds


def _whole(name: str) -> Callable[[str], int]:
    return lambda text: int(_within(name, int(text)))


def _number(name: str) -> Callable[[str], float]:
    return lambda text: _within(name, float(text))


def _within(name: str, value: float) -> float:
    field = FIELD_BY_NAME[name]
    assert field.low is not None
    assert field.high is not None
    if not field.low <= value <= field.high:
        raise ValueError(value)
    return value


def _sampler(text: str) -> str:
    if text not in SAMPLER_BY_NAME:
        raise ValueError(text)
    return text


def size_of(text: str) -> Size:
    """Of `192`, or `128x192` (height first).

    Raises:
        ValueError: it is neither.
    """
    height, separator, width = text.lower().partition("x")
    found = int(height), int(width) if separator else int(height)
    if not all(1 <= side <= MAX_SIDE for side in found):
        raise ValueError(text)
    return found[0] if found[0] == found[1] else found


# How a cell of each column is read, and what it may be.
COLUMNS: dict[str, tuple[Callable[[str], Any], str]] = {
    "steps": (_whole("num_inference_steps"), FIELD_BY_NAME["num_inference_steps"].allowed),
    "sampler": (_sampler, FIELD_BY_NAME["sampler"].allowed),
    "guidance": (_number("guidance_scale"), FIELD_BY_NAME["guidance_scale"].allowed),
    "size": (size_of, f"a side such as 192, or height x width such as 128x192, up to {MAX_SIDE}"),
    "prompt": (str, FIELD_BY_NAME["prompt"].allowed),
    "client_id": (str, FIELD_BY_NAME["client_id"].allowed),
}
