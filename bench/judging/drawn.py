"""Drawn pictures, in a folder rather than in memory: five thousand of SDXL's take 16 GB as pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from bench.judging.judge import Pixels


class Drawn:
    """Pictures in the order in which they were drawn, each read whenever it is looked at.

    Args:
        folder: for their files; made if it is not there.
        files: encoded pictures, written as they come.
    """

    def __init__(self, folder: Path, files: Iterable[bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [_written(folder / str(i), data) for i, data in enumerate(files)]

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Pixels]:
        """(height, width, 3) each."""
        for path in self._paths:
            with Image.open(path) as image:
                yield np.asarray(image.convert("RGB"))


# Of `Pixels`, however they are kept.
Pictures: TypeAlias = Drawn | Sequence[Pixels]


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
