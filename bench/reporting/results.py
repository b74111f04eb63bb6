"""How every measurement is reported: one JSON object, the last line of standard output, kept on request."""

from __future__ import annotations

import datetime
import errno
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Of the form of a result, which `schema.json` describes; a reader refuses one that is newer than itself.
SCHEMA = 1
ROOT = Path(__file__).resolve().parents[2]
# What a figure depends on, of the packages that compute or carry it.
PACKAGES = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch", "tritonclient", "nvidia-pytriton"),
)
# For NVIDIA's driver to tell its GPUs, in seconds.
DRIVER_SECONDS = 10.0


def environment() -> dict[str, Any]:
    """What a figure depends on besides the command, of this machine and of this checkout."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": _gpus(),
        "memory_gib": _memory_gib(),
        "revision": _revision(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def described(program: str, arguments: Sequence[str], result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with what it takes to make it again: program, command, date and environment.

    `partial` is true where a measurement ended before its time, and keeps what it had. An `environment` of the result
    itself, such as the `server` that it measured, goes with the one of this machine.
    """
    return {
        "schema": SCHEMA,
        "program": program,
        "command": shlex.join(["python", "-m", "bench", program, *arguments]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "partial": False,
        **result,
        "environment": {**environment(), **result.get("environment", {})},
    }


def need_place(file: Path | None) -> None:
    """To be called before a long measurement.

    Raises:
        OSError: nothing can be written to that file.
    """
    if file is None:
        return
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))


def tell(result: Mapping[str, Any], file: Path | None) -> None:
    """Print `result` as the last line, without samples and plots; write all of it to `file`.

    Raises:
        OSError: the file cannot be written; the line has been printed.
    """
    print(json.dumps(plain(summary(result))))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plain(result)) + "\n", encoding="utf-8")


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what is there to be drawn, and without the samples of its figures."""
    brief = {name: value for name, value in result.items() if name != "plots"}
    if "measures" in brief:
        brief["measures"] = {
            name: {key: value for key, value in figure.items() if key != "samples"}
            for name, figure in brief["measures"].items()
        }
    return brief


def plain(value: Any) -> Any:
    """The same, with null for numbers that JSON cannot write."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return value


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def _gpus() -> list[str]:
    """Name, memory and driver of each, as NVIDIA's driver tells them; empty without one, or if it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DRIVER_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in told.splitlines() if line.strip()]


def _memory_gib() -> float:
    """Of the machine; 0 where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return 0.0


def _revision() -> str:
    """The commit of the checkout, with a + where files differ from it; empty outside of one."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return ""
    command = [
        git,
        "--no-optional-locks",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--abbrev=10",
        "--exclude=*",
        "--dirty=+",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
