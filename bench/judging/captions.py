"""What a user brings to judge a checkpoint by: captions to draw, and real pictures to be like."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from bench.judging.judge import Pixels
from server.errors import ServerError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
COLUMN = "caption"


def read_captions(path: Path, option: str = "--captions") -> list[str]:
    """One a line; of a `.tsv` file the column `caption`, as MLPerf's COCO list has it.

    Args:
        option: by which it was given.

    Raises:
        ServerError: there is no such file, or no caption in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"{option} {path} cannot be read ({error}); give a text file, one caption a line") from error
    lines = text.splitlines()
    if path.suffix == ".tsv":
        rows = list(csv.DictReader(lines, delimiter="\t"))
        if rows and COLUMN not in rows[0]:
            raise ServerError(f"{option} {path} has the columns {', '.join(rows[0])} and not {COLUMN}; name one so")
        lines = [row[COLUMN] or "" for row in rows]
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise ServerError(f"{option} {path} has no captions; write one a line")
    return captions


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, and of those in it.

    Raises:
        ServerError: there is no such folder, or fewer than two pictures.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise ServerError(
            f"--real {folder} has {len(found)} pictures; give a folder with at least 2 ({', '.join(SUFFIXES)})"
        )
    return found


def read_pictures(paths: list[Path]) -> Iterator[Pixels]:
    """(height, width, 3) each.

    Raises:
        ServerError: a file is no picture.
    """
    for path in paths:
        try:
            with Image.open(path) as image:
                yield np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise ServerError(f"{path} is no picture that can be read ({error}); remove it from --real") from error
