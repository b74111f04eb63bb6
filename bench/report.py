"""Many results on one page: their figures, drawings, machines, commands and dates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.reporting import pages
from bench.reporting.reading import Result, read
from server.errors import ServerError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="RESULT.json", nargs="+", type=Path, help="results that --json wrote")
    parser.add_argument("--html", type=Path, default=Path("out/report.html"), help="the page (default: %(default)s)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The page has every file that is a result; `failures` names the others, as the page does.

    Raises:
        ServerError: none is a result, or a library is missing.
    """
    pages.require()
    results: list[Result] = []
    unread: list[str] = []
    for file in options.files:
        try:
            results.append(read(file))
        except ServerError as error:
            unread.append(str(error))
    if not results:
        raise ServerError("; ".join(unread))
    pages.write(options.html, results, unread)
    return {
        "page": str(options.html),
        "bytes": options.html.stat().st_size,
        "results": [result.name for result in results],
        "failures": unread,
    }
