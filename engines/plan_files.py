"""Plans on disk: written whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from engines.component import PipelineSpec
from engines.errors import BuildError, PlanError
from engines.manifest import Manifest, Recipe, check_bytes, is_stale, plans

logger = logging.getLogger(__name__)


def standing(plan: Path, recipe: Recipe) -> Manifest | None:
    """The manifest of the plan of that recipe if it is there and sound.

    Size and time of the file stand for its bytes, which are hashed only where the time differs, as in a copy.
    """
    try:
        manifest = Manifest.read(plan.with_suffix(".json"))
        state = plan.stat()
        if (state.st_size, state.st_mtime_ns) != (manifest.size, manifest.modified_ns):
            check_bytes(manifest, plan)
    except (PlanError, FileNotFoundError):
        return None
    return manifest if manifest.key == recipe.key else None


@contextmanager
def alone(plan: Path) -> Iterator[None]:
    """Hold the right to write `plan`; waits while another process has it, and takes it over from one that died.

    Raises:
        BuildError: its folder cannot be written.
    """
    lock = FileLock(_lock(plan))
    with _explained(plan):
        plan.parent.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("%s is being built by another process; waiting for it", plan.name)
            lock.acquire()
    try:
        # What a process that was killed while it wrote has left.
        _unfinished(plan).unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def check_room(plan: Path, weights: int) -> None:
    """Raises BuildError where the disk has no room for a plan with that many bytes of weights."""
    free = shutil.disk_usage(plan.parent).free
    if free < weights:
        raise BuildError(
            f"the disk of {plan.parent} has {free >> 20} MiB free, {plan.name} needs more than {weights >> 20} MiB; "
            f"free some, or move the export"
        )


def write(plan: Path, content: Any, manifest: Manifest) -> Manifest:
    """Write a plan and its manifest so that whoever sees the plan sees both whole; returns the manifest as written.

    Raises:
        BuildError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    unfinished = _unfinished(plan)
    try:
        with _explained(plan):
            plan.unlink(missing_ok=True)
            plan.with_suffix(".json").unlink(missing_ok=True)
            _write_through(unfinished, content)
            manifest = replace(manifest, modified_ns=unfinished.stat().st_mtime_ns)
            described = plan.with_suffix(".json.partial")
            _write_through(described, manifest.to_json().encode())
            described.replace(plan.with_suffix(".json"))
            unfinished.replace(plan)
    finally:
        unfinished.unlink(missing_ok=True)
        plan.with_suffix(".json.partial").unlink(missing_ok=True)
    return manifest


def prune(folder: Path, spec: PipelineSpec) -> list[Path]:
    """Remove the plans of an export folder that were made from an earlier export; returns them.

    Everyone would refuse them. Plans for other machines, rows or options stay, and so does what cannot be read, what is
    being built, and what cannot be removed.
    """
    removed = []
    for plan in plans(folder):
        with contextlib.suppress(PlanError, Timeout, OSError):
            if is_stale(Manifest.read(plan.with_suffix(".json")).recipe, spec):
                with FileLock(_lock(plan), timeout=0):
                    plan.unlink()
                    plan.with_suffix(".json").unlink()
                    removed.append(plan)
                _lock(plan).unlink(missing_ok=True)
    return removed


def _lock(plan: Path) -> Path:
    return plan.with_name(f".{plan.stem}.lock")


def _unfinished(plan: Path) -> Path:
    return plan.with_name(f".{plan.name}.partial")


def _write_through(path: Path, content: Any) -> None:
    """Write to the disk itself, so that no crash leaves a name without its bytes."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _explained(plan: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"{plan} cannot be written ({error.strerror or error}); free disk space or correct the folder's permissions"
        ) from error
