"""Results as one page that needs nothing else: tables, drawings, and what it takes to measure again."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.reporting import words
from bench.reporting.charts import drawn
from bench.reporting.reading import Result
from server.errors import ServerError

TEMPLATE = Path(__file__).with_name("page.html")
LIBRARIES = ("jinja2", "matplotlib")
# What stands on the page in another form, or says nothing about what was measured.
SHOWN = {"schema", "program", "command", "date", "partial", "failures", "note", "measures", "plots", "environment"}
REST_CHARACTERS = 40_000


def require() -> None:
    """To be called before a long measurement.

    Raises:
        ServerError: a library that pages need is not installed.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ServerError(f"an HTML page needs {' and '.join(missing)}: install the extra, `pip install '.[bench]'`")


def page(results: Sequence[Result], unread: Sequence[str] = ()) -> str:
    """The page of one or many results.

    Args:
        unread: sentences about files that are not among them.
    """
    import jinja2

    strict = jinja2.StrictUndefined
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=strict)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    programs = list(dict.fromkeys(result.program for result in results))
    title = f"bench {programs[0]}" if len(programs) == 1 else "Measurements"
    names = _headings(results)
    sections = [_section(result, name, i) for i, (result, name) in enumerate(zip(results, names, strict=True))]
    return template.render(title=title, sections=sections, unread=unread, spread=words.SPREAD)


def write(file: Path, results: Sequence[Result], unread: Sequence[str] = ()) -> None:
    """Put the page of the results into a file.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(results, unread), encoding="utf-8")


def _headings(results: Sequence[Result]) -> list[str]:
    """The programs; with their files where one comes twice."""
    programs = [result.program for result in results]
    return [
        result.program if programs.count(result.program) == 1 else f"{result.program} ({result.name})"
        for result in results
    ]


def _section(result: Result, heading: str, index: int) -> Mapping[str, Any]:
    return {
        "result": result,
        "heading": heading,
        "anchor": f"result-{index}",
        "day": words.day(result.date),
        "machine": words.machine(result.environment),
        "software": words.software(result.environment),
        "rows": [
            {
                "name": measure.name,
                "figure": words.figure(measure),
                "spread": words.spread(measure),
                "better": measure.better or "",
            }
            for measure in result.measures.values()
        ],
        "drawings": [(plot, drawn(plot, f"d{index}-{i}")) for i, plot in enumerate(result.plots)],
        "rest": _rest(result.whole),
    }


def _rest(whole: Mapping[str, Any]) -> str:
    server = whole.get("environment", {}).get("server")
    rest = {**({"server": server} if server else {}), **{name: one for name, one in whole.items() if name not in SHOWN}}
    text = json.dumps(rest, indent=1, ensure_ascii=False) if rest else ""
    return text if len(text) <= REST_CHARACTERS else f"{text[:REST_CHARACTERS]}\n… the JSON file has all of it"
