"""Toy networks for compilers, which are real where they can be had."""

from pathlib import Path

import pytest

from tests.toy_export import write_toy_export


@pytest.fixture
def toy_export(tmp_path: Path) -> Path:
    """An export folder of toy networks that a test may change."""
    folder = tmp_path / "toy_export"
    folder.mkdir()
    write_toy_export(folder)
    return folder
