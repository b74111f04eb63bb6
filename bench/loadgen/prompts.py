"""Where the prompts of a run come from, and what it says of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bench.judging.captions import COLUMN, read_captions
from bench.judging.trials import held_out


def read_prompts(file: Path | None) -> list[str]:
    """Those of a file of captions; without one the held-out captions of the embedded checkpoint.

    Raises:
        ServerError: the file cannot be read, or has none.
    """
    return [case["caption"] for case in held_out()] if file is None else read_captions(file, "--prompts")


def write_captions(folder: Path, prompts: Sequence[str]) -> Path:
    """`captions.tsv`, which says what each picture of an accuracy run should show."""
    path = folder / "captions.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("file", COLUMN))
        table.writerows((f"{number:05d}.png", " ".join(prompt.split())) for number, prompt in enumerate(prompts))
    return path
