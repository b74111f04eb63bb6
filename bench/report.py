"""How every measurement is reported: one JSON object, the last line of standard output, kept on request."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    model = ""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        names = [line.partition(":")[2].strip() for line in listing.read_text().splitlines() if "model name" in line]
        model = names[0] if names else ""
    return {"python": platform.python_version(), "processor": model, "cores": os.cpu_count()}


def report(result: Mapping[str, Any], file: Path | None) -> None:
    """Print `result` with the environment as the last line; also write it to `file`."""
    line = json.dumps({**result, "environment": environment()})
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(line + "\n", encoding="utf-8")
    print(line)
