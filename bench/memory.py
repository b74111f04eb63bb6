"""How much memory is used: by this process on the host, and on GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.reporting.results import DRIVER_SECONDS
from engines.providers import PROVIDERS


@dataclass(frozen=True, slots=True)
class Memory:
    """What is used at a moment, in MiB.

    Attributes:
        host: by this process; 0 where the kernel does not tell.
        device: of all GPUs, by whomever; None for a provider that computes on none, or where no driver tells.
    """

    host: float
    device: float | None

    @classmethod
    def now(cls, provider: str) -> Memory:
        on_gpu = provider in PROVIDERS and PROVIDERS[provider].on_gpu
        return cls(_resident(), _of_devices() if on_gpu else None)

    def since(self, before: Memory) -> Memory:
        """By how much it is more; where it is less, 0."""
        known = self.device is not None and before.device is not None
        return Memory(
            max(0.0, self.host - before.host),
            max(0.0, (self.device or 0.0) - (before.device or 0.0)) if known else None,
        )


def _resident() -> float:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if status.exists() else 0.0


def _of_devices() -> float | None:
    """As NVIDIA's driver tells it, which in a container says nothing of single processes."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DRIVER_SECONDS).stdout
        used = [float(line) for line in told.splitlines() if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return sum(used) if used else None
