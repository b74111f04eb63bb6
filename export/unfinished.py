"""Folders for files that are not all there yet: gone when the work ends, and swept after a process that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".unfinished-"


@contextmanager
def unfinished(place: Path, name: str = "") -> Iterator[Path]:
    """A new folder in `place`, removed in the end with all that was not moved out of it; so is a `place` still empty.

    Folders of the same name whose process is gone are removed first. A process keeps its own locked, and no lock
    outlives its process.

    Args:
        name: tells apart what is made for different ends in one place.

    Raises:
        OSError: `place` cannot be written.
    """
    was_there = place.exists()
    place.mkdir(parents=True, exist_ok=True)
    folder = place / f"{PREFIX}{name}{secrets.token_hex(4)}"
    try:
        # Nobody sweeps between a folder's making and its lock.
        with locked(place):
            _sweep(place, name)
            folder.mkdir()
            lock = _open(folder)
            _lock(lock, wait=False)
        try:
            yield folder
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not was_there and not any(place.iterdir()):
            place.rmdir()


def _sweep(place: Path, name: str) -> None:
    for left in place.glob(f"{PREFIX}{glob.escape(name)}*"):
        # One that ends by itself may be gone by now.
        with contextlib.suppress(OSError), locked(left, wait=False) as abandoned:
            if abandoned:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock; tells whether it is held, which it never is where the file system has no such locks."""
    handle = _open(folder)
    try:
        yield _lock(handle, wait=wait)
    finally:
        os.close(handle)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def _lock(handle: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
