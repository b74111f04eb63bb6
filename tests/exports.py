"""Exports that are made once and kept, for all processes and runs that ask for the same."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from export.checkpoint import Checkpoint
from export.export import Options, export_checkpoint


def export_once(checkpoint: Path, folder: Path, options: Options) -> Path:
    """The export of a checkpoint in `folder`, made unless it is up to date by its key; one process at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        export_checkpoint(Checkpoint.open(str(checkpoint)), folder, options)
    return folder
