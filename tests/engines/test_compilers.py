"""Compilers: the real TensorRT-RTX, and both generations of TensorRT as their documentation describes them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines import compilers, driver
from engines.compilers import available_compilers, open_compiler
from engines.driver import this_machine
from engines.errors import BuildError
from engines.manifest import Machine

ROOT = Path(__file__).resolve().parents[2]
# A process of its own, since Polygraphy is bound to the first compiler that it meets.
WITH_TENSORRT = """
import json, sys
from tests import fake_tensorrt
version, capability, rows, *arguments = sys.argv[1:]
fake_tensorrt.install(version)
fake_tensorrt.Builder.rows = int(rows)
from engines import compilers, driver
from engines.__main__ import main
compilers.device_capability = lambda: json.loads(capability) and tuple(json.loads(capability))
sys.exit(main(["build", *arguments, "--component", "unet", "--resolution", "64"]))
"""


def with_tensorrt(
    export: Path, version: str, *arguments: str, capability: tuple[int, int] | None = (9, 0), rows: int = 1 << 30
) -> subprocess.CompletedProcess[str]:
    """`python -m engines build` of the UNet with a TensorRT that notes what it is told."""
    command = [sys.executable, "-c", WITH_TENSORRT, version, json.dumps(capability), str(rows), str(export), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLYGRAPHY")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


def told(export: Path) -> dict[str, Any]:
    """What the only plan says that its compiler was told."""
    [plan] = (export / "plans").glob("*.plan")
    found: dict[str, Any] = json.loads(plan.read_text())
    return found


# STRONGLY_TYPED is flag 1 of TensorRT 10 and flag 0 of TensorRT 11.
@pytest.mark.parametrize(("version", "strongly_typed"), [("10.16.1", 2), ("11.4.0", 1)])
def test_both_generations_are_told_the_same(toy_export: Path, version: str, strongly_typed: int) -> None:
    cache = toy_export / "times"
    arguments = ["--rows", "1:2:4", "--refittable", "--strip", "--level", "4", "--memory-gb", "2"]
    done = with_tensorrt(toy_export, version, *arguments, "--timing-cache", str(cache))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert ".plan: built in " in done.stderr
    assert told(toy_export) == {
        "network_flags": strongly_typed,
        "flags": ["REFIT", "STRIP_PLAN"],
        "limits": {"WORKSPACE": 2 << 30},
        "level": 4,
        "profile": {
            "sample": [[1, 4, 8, 8], [2, 4, 8, 8], [4, 4, 8, 8]],
            "encoder_hidden_states": [[1, 77, 8], [2, 77, 8], [4, 616, 8]],
        },
        "timing_cache": "",
        "edges": {"sample": "FLOAT", "encoder_hidden_states": "FLOAT", "out_sample": "FLOAT"},
    }
    assert cache.read_text() == "timed "
    [manifest] = (toy_export / "plans").glob("*.json")
    recipe = json.loads(manifest.read_text())["recipe"]
    assert (recipe["compiler"], recipe["version"], recipe["capabilities"]) == ("tensorrt", version, [[9, 0]])


def test_a_timing_cache_is_read_by_later_builds(toy_export: Path) -> None:
    cache = toy_export / "times"
    cache.write_text("earlier ")
    assert with_tensorrt(toy_export, "11.4.0", "--timing-cache", str(cache)).returncode == 0
    assert told(toy_export)["timing_cache"] == "earlier "
    assert cache.read_text() == "earlier timed "


def test_tf32_is_on_only_where_asked_for(toy_export: Path) -> None:
    assert with_tensorrt(toy_export, "11.4.0", "--tf32").returncode == 0
    assert told(toy_export)["flags"] == ["TF32"]


def test_a_shortage_that_tensorrt_reports_leads_to_fewer_rows(toy_export: Path) -> None:
    done = with_tensorrt(toy_export, "11.4.0", rows=5)
    assert done.returncode == 0
    assert "ran out of memory on unet (Could not find any implementation for node" in done.stderr
    assert "was built with less than asked, since memory was short: at most 8 rows; at most 4 rows" in done.stdout
    assert told(toy_export)["profile"]["sample"][2] == [4, 4, 8, 8]


@pytest.mark.parametrize(
    ("version", "capability", "arguments", "reason"),
    [
        ("8.6.1", (9, 0), [], "TensorRT 8.6.1 has no strongly typed networks; install 10.0 or later"),
        ("11.4.0", None, [], "none is here; build on that machine, or use --compiler tensorrt_rtx"),
        ("11.4.0", (9, 0), ["--timing-cache", "no/such/folder/times"], "no/such/folder is no folder; make it first"),
        ("11.4.0", (9, 0), ["--compute-capability", "8.9"], "builds for the GPU at hand, 9.0, not for 8.9; leave"),
    ],
)
def test_what_tensorrt_cannot_do_is_told(
    toy_export: Path, version: str, capability: tuple[int, int] | None, arguments: list[str], reason: str
) -> None:
    done = with_tensorrt(toy_export, version, "--compiler", "tensorrt", *arguments, capability=capability)
    assert done.returncode == 1
    assert done.stderr.startswith("engines: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (toy_export / "plans").exists()


def test_what_is_installed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_compilers() == ("tensorrt_rtx",)
    monkeypatch.setattr(driver, "device_capability", lambda: (8, 9))
    assert this_machine() == this_machine("tensorrt_rtx") == Machine("tensorrt_rtx", open_compiler().version, (8, 9))


def test_without_a_compiler_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "available_compilers", lambda: ())
    with pytest.raises(BuildError, match=r"not installed with polygraphy, nor is another one; run `pip install"):
        open_compiler()


def test_one_process_uses_one_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    open_compiler("tensorrt_rtx")
    monkeypatch.setattr(compilers, "available_compilers", lambda: ("tensorrt", "tensorrt_rtx"))
    monkeypatch.setenv(compilers.USE_RTX, "1")
    with pytest.raises(BuildError, match="begun with another compiler than tensorrt; start a new one"):
        open_compiler("tensorrt")


def test_importing_the_builder_needs_no_compiler() -> None:
    code = "import sys, engines.build; print([m for m in sys.modules if 'tensorrt' in m or 'polygraphy' in m])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
