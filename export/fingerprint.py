"""SHA-256 over the files of a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

BLOCK = 1 << 20
# Configurations, vocabularies, weights; not what people read.
KINDS = {".json", ".txt", ".safetensors", ".bin"}


def files_fingerprint(folder: Path, paths: Iterable[Path], single: Path | None = None) -> str:
    """Over the names, sizes and bytes of those of these files that count, and of a single file whatever its kind.

    Args:
        folder: that the names are relative to.
    """
    digest = hashlib.sha256()
    for path in [*paths, *([single] if single else [])]:
        if path == single or (path.is_file() and path.suffix in KINDS):
            inside = path.name if path == single else str(path.relative_to(folder))
            digest.update(f"{inside}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as stream:
                while block := stream.read(BLOCK):
                    digest.update(block)
    return digest.hexdigest()
