"""How every measurement is reported: one JSON object, the last line of standard output, kept on request."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# What a figure depends on, of the packages that compute or carry it.
PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "tritonclient", "nvidia-pytriton")


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    model = ""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        names = [line.partition(":")[2].strip() for line in listing.read_text().splitlines() if "model name" in line]
        model = names[0] if names else ""
    return {
        "python": platform.python_version(),
        "processor": model,
        "cores": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def described(program: str, arguments: Sequence[str], result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with what it takes to make it again: program, command, date and environment.

    `partial` is true where a measurement ended before its time, and keeps what it had.
    """
    return {
        "program": program,
        "command": shlex.join(["python", "-m", "bench", program, *arguments]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "partial": False,
        **result,
        "environment": environment(),
    }


def report(result: Mapping[str, Any], file: Path | None) -> None:
    """Print `result` as the last line, without samples and plots; write all of it to `file`."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps(summary(result)))


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what is there to be drawn, and without the samples of its figures."""
    brief = {name: value for name, value in result.items() if name != "plots"}
    if "measures" in brief:
        brief["measures"] = {
            name: {key: value for key, value in figure.items() if key != "samples"}
            for name, figure in brief["measures"].items()
        }
    return brief


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
