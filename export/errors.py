"""Errors of the export.

* ExportError
    * CheckpointError  the checkpoint is missing, damaged or of a kind that is not supported
    * ParityError      the exported graph computes something else than torch
"""


class ExportError(Exception):
    """The export stopped; the text says why and what to do."""


class CheckpointError(ExportError):
    """A checkpoint that is missing, damaged or of a kind that is not supported."""


class ParityError(ExportError):
    """An exported component that differs from torch by more than its limit."""
