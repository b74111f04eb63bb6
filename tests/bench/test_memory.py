"""What is used of memory, with a stand-in for NVIDIA's driver."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.memory import Memory

Says = Callable[[str], None]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Has the driver end in a way; it knows no other question than that for memory."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def says(ending: str) -> None:
        program.write_text(f'#!/bin/sh\ntest "$1" = --query-gpu=memory.used || exit 2\n{ending}\n')
        program.chmod(0o755)

    return says


@pytest.mark.parametrize(
    ("ending", "used"),
    [("echo 300; echo 1200", 1500.0), ("echo 300; exit 9", None), ("echo '[N/A]'", None), ("true", None)],
)
def test_what_gpus_use_is_what_the_driver_tells(driver: Says, ending: str, used: float | None) -> None:
    driver(ending)
    assert Memory.now("cuda").device == used
    assert Memory.now("openvino").device is None


def test_growth_is_told_where_both_are_known(driver: Says) -> None:
    driver("echo 300")
    before = Memory.now("tensorrt")
    held = np.ones(2**24)
    driver("echo 812")
    grown = Memory.now("tensorrt").since(before)
    assert grown.device == 512.0
    assert grown.host == pytest.approx(held.nbytes / 2**20, rel=0.2)
    assert Memory(0.0, 100.0).since(before) == Memory(0.0, 0.0)
    assert Memory(0.0, None).since(before).device is None
