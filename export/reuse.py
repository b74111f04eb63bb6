"""Components that another export has already, of the same weights and by the same programs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.catalog import Side
from engines.component import Component, PipelineSpec
from engines.errors import ArtefactError
from export.checkpoint import Checkpoint


def component_key(checkpoint: Checkpoint, name: str, sides: tuple[Side, Side], ways: dict[str, Any]) -> str:
    """SHA-256 over all that a component's file depends on; empty where its weights are not in files of their own.

    Args:
        sides: its tensors.
        ways: what it depends on beside the checkpoint: options, programs, libraries.
    """
    weights = checkpoint.part_fingerprint(name)
    if not weights:
        return ""
    tensors = [[(tensor.name, tensor.dtype, tensor.shape) for tensor in side] for side in sides]
    parts = {"weights": weights, "family": checkpoint.family, "name": name, "tensors": tensors, **ways}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def reused(
    key: str, name: str, folders: Sequence[Path], suffixes: Sequence[str], target: Path
) -> tuple[Component, PipelineSpec] | None:
    """The component of that key in one of these export folders, its files brought to `target`, and the export that has
    it; None if none has.
    """
    for folder in folders if key else ():
        try:
            spec = PipelineSpec.read(folder)
        except ArtefactError:
            continue
        found = spec.components.get(name)
        if found is not None and found.source == key and found.is_intact(folder):
            for suffix in suffixes:
                path = folder / f"{name}{suffix}"
                if path.is_file():
                    _bring(path, target / path.name)
            return found, spec
    return None


def _bring(path: Path, target: Path) -> None:
    """Linked where both are on one disk, so that it takes no room."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
