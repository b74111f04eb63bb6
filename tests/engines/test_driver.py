"""What runs plans: asked of NVIDIA's libraries, here stand-ins for them."""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.driver import VERSION_PARTS, this_machine
from engines.errors import ProviderError
from engines.manifest import Machine

ROOT = Path(__file__).resolve().parents[2]


def test_plans_run_where_the_library_is_without_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in NVIDIA's image of Triton, which has neither the Python packages nor Polygraphy."""
    library = SimpleNamespace(
        **{f"getInferLib{part}Version": lambda n=n: n for n, part in enumerate(VERSION_PARTS, 10)}
    )

    def load(name: str) -> SimpleNamespace:
        if name != "libnvinfer.so.10":
            raise OSError("no such file")
        return library

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert this_machine() == this_machine("tensorrt") == Machine("tensorrt", "10.11.12.13", None)
    with pytest.raises(ProviderError, match=r"tensorrt_rtx is not here, or runs no plans; install the compiler"):
        this_machine("tensorrt_rtx")


@pytest.mark.parametrize(("name", "told"), [("auto", "no TensorRT is here"), ("cuda", "cuda is not here, or runs no")])
def test_where_no_plan_can_run_the_error_says_so(name: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProviderError, match=told):
        this_machine(name)


def test_running_plans_imports_nothing_that_only_building_them_needs() -> None:
    """An image that serves has neither."""
    code = "import sys, engines.plan_runner; print({'tqdm', 'filelock', 'polygraphy'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "set()\n"
