"""The processes of one group, and the end of all of them. /proc is Linux only; elsewhere a group looks empty."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# PR_SET_PDEATHSIG is 1. Whose parent has ended before it was set would never hear of it.
MORTAL = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)})
if os.getppid() != int(sys.argv[1]):
    sys.exit("the launcher has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""
POLL_SECONDS = 0.02
# Fields of /proc/<pid>/stat behind the name, which may hold blanks and brackets itself.
STATE, GROUP, START = 0, 2, 19
ENDED = ("Z", "X")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one with the same id by when it started (clock ticks since boot)."""

    pid: int
    start: int
    command: tuple[str, ...]

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and fields[STATE] not in ENDED and int(fields[START]) == self.start


def members(group: int) -> list[Process]:
    """The processes of a group that run now."""
    found = []
    for folder in PROC.glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields is not None and int(fields[GROUP]) == group and fields[STATE] not in ENDED:
            found.append(Process(int(folder.name), int(fields[START]), _command(folder)))
    return found


def kill_group(leader: subprocess.Popen[bytes], seconds: float) -> list[Process]:
    """SIGKILL to our child and the group that it leads; returns those that still run after so many seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    end = time.monotonic() + seconds
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(seconds)
    while (left := members(leader.pid)) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    if leader.returncode is not None:
        _reap(leader.pid)
    return left


def mortal(command: Sequence[str]) -> list[str]:
    """A command line that runs `command` in its own process, to which the kernel sends SIGTERM when we have ended.

    `subprocess` could do it by `preexec_fn`, but would then run gRPC's fork handlers between fork and exec, which abort
    the child where a client of ours has open calls. Linux only.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", MORTAL, str(os.getpid()), *command]


def _reap(group: int) -> None:
    """Orphans become children of process 1, which in a container may be this one."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG) != (0, 0):
            pass


def _stat(pid: int) -> list[str] | None:
    """None when there is no such process."""
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split() or None
    except OSError:
        return None


def _command(folder: Path) -> tuple[str, ...]:
    """Empty for a process that has just ended."""
    try:
        return tuple((folder / "cmdline").read_text(errors="replace").split("\0")[:-1])
    except OSError:
        return ()
