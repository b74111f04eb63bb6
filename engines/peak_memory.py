"""The largest resident memory of this process since a moment, which Linux keeps and can forget."""

from __future__ import annotations

import contextlib
from pathlib import Path

FORGET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
# Written to FORGET, this resets the peak only: proc(5).
PEAK = "5"


def reset_peak() -> None:
    """Begin anew; where the kernel does not let us, the peak since the process began stays."""
    with contextlib.suppress(OSError):
        FORGET.write_text(PEAK)


def peak_bytes() -> int:
    """The largest resident memory, in bytes; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0
