"""Errors of the export.

* ExportError
    * CheckpointError  the checkpoint is missing, damaged or of a kind that is not supported
    * ParityError      the exported graph computes something else than torch
"""

from pathlib import Path


class ExportError(Exception):
    """The export stopped; the text says why and what to do."""


class CheckpointError(ExportError):
    """A checkpoint that is missing, damaged or of a kind that is not supported."""


class ParityError(ExportError):
    """An exported component that differs from torch by more than its limit."""


def unwritable(folder: Path, error: OSError) -> ExportError:
    """What to say when files cannot be written into a folder."""
    return ExportError(
        f"{folder} cannot be written ({error.strerror or error}); give another --out, or make room there"
    )
