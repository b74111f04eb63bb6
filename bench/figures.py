"""README's performance section: written from the results in bench/results, each with its command, machine and date."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.reporting import keeping, readme
from server.errors import ServerError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=Path, metavar="RESULT.json", help="first put this result into bench/results")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN",
        help="of the kept result, tell figures of such names, as 'latency*'; repeat for more (default: as before)",
    )  # fmt: skip
    parser.add_argument("--note", help="what the kept result's figures should be read with, such as 'a busy machine'")
    parser.add_argument("--results", type=Path, default=keeping.FOLDER, metavar="DIR", help="in place of bench/results")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--write", type=Path, metavar="README.md", help="fill the document's section")
    target.add_argument("--check", type=Path, metavar="README.md", help="exit code 1 if its section is not up to date")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Keep, then write or check; with none of them, print the section.

    Raises:
        ServerError: a file that is no result or is partial, or a document without a place for the figures.
    """
    if options.keep is None and (options.only or options.note is not None):
        raise ServerError("--only and --note belong to a result: add --keep RESULT.json")
    folder: Path = options.results
    place = keeping.keep(options.keep, folder, only=options.only, note=options.note) if options.keep else None
    results = keeping.kept(folder)
    failures = []
    document: Path | None = options.write or options.check
    if document is None:
        print(readme.section(results))
    else:
        text = document.read_text(encoding="utf-8")
        new = readme.filled(text, results, str(document))
        if options.write:
            document.write_text(new, encoding="utf-8")
        elif text != new:
            failures = [f"{document} does not tell bench/results: run `python -m bench figures --write {document}`"]
    return {
        "kept": None if place is None else place.name,
        "told": {result.name: len(keeping.told_measures(result)) for result in results},
        "failures": failures,
    }
