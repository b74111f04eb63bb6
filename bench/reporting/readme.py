"""README's performance section, from the results that are kept."""

from __future__ import annotations

from collections.abc import Sequence

from bench.reporting import words
from bench.reporting.keeping import told_measures
from bench.reporting.reading import Result
from server.errors import ServerError

BEGIN, END = "<!-- figures: begin, written by `python -m bench figures --write README.md` -->", "<!-- figures: end -->"


def section(results: Sequence[Result]) -> str:
    """One table for each result, below its command, machine and date."""
    if not results:
        return "No results are kept yet."
    legend = f"Spread is {words.SPREAD}."
    return "\n\n".join([legend, *(_table(result) for result in results)])


def filled(text: str, results: Sequence[Result], name: str = "README.md") -> str:
    """A document with the section between its two marks.

    Raises:
        ServerError: it has not both marks once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ServerError(
            f"{name} has no place for the figures: put {BEGIN!r} and {END!r} on lines of their own into it"
        )
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}"


def _table(result: Result) -> str:
    about = [words.day(result.date), words.machine(result.environment), words.software(result.environment)]
    if result.note:
        about.append(result.note)
    if result.failures:
        about.append(f"with {len(result.failures)} failures")
    lines = [f"`{result.command}`", f"({'; '.join(_safe(part) for part in about)})", ""]
    lines += ["| figure | measured | spread |", "|---|---|---|"]
    for name in told_measures(result):
        measure = result.measures[name]
        lines.append(f"| {_safe(name)} | {_safe(words.figure(measure))} | {words.spread(measure)} |")
    return "\n".join(lines)


def _safe(text: str) -> str:
    """As it stands in a cell."""
    for mark in "\\|*_`<":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
