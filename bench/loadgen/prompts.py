"""Where the prompts of a run come from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bench.judging.trials import held_out
from server.errors import ServerError

# Of the table of captions that MLPerf's reference makes of COCO.
COLUMN = "caption"


def read_prompts(file: Path | None) -> list[str]:
    """One per line, or a column of a `.tsv`; without a file the held-out captions of the embedded checkpoint.

    Raises:
        ServerError: the file cannot be read, or has none.
    """
    if file is None:
        return [case["caption"] for case in held_out()]
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"--prompts {file} cannot be read as text: {error}") from None
    lines = text.splitlines()
    if file.suffix == ".tsv":
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if COLUMN not in (rows.fieldnames or ()):
            raise ServerError(f"--prompts {file} has the columns {rows.fieldnames}: one must be called {COLUMN!r}")
        lines = [row[COLUMN] or "" for row in rows]
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ServerError(f"--prompts {file} has no prompt: write one on each line")
    return prompts


def write_captions(folder: Path, prompts: Sequence[str]) -> Path:
    """`captions.tsv`, which says what each picture of an accuracy run should show."""
    lines = [f"{number:05d}.png\t{' '.join(prompt.split())}" for number, prompt in enumerate(prompts)]
    file = folder / "captions.tsv"
    file.write_text("\n".join([f"file\t{COLUMN}", *lines]) + "\n", encoding="utf-8")
    return file
