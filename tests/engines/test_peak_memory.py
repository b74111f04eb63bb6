"""The peak of resident memory is of this process, and can be forgotten."""

from pathlib import Path

import pytest

from engines import peak_memory
from engines.peak_memory import peak_bytes, reset_peak


def test_the_peak_outlives_the_memory_and_can_be_forgotten() -> None:
    held = bytearray(b"\1") * (200 << 20)
    filled = peak_bytes()
    assert filled >= len(held)
    del held
    assert abs(peak_bytes() - filled) < 4 << 20  # the kernel counts in batches per thread
    reset_peak()
    assert peak_bytes() < filled - (100 << 20)


def test_where_the_kernel_does_not_tell_there_is_no_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(peak_memory, "FORGET", tmp_path / "missing" / "clear_refs")
    reset_peak()
    assert peak_bytes() == 0
