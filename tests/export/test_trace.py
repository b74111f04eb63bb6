"""The bar of a component's stages."""

import io
import sys

import pytest

from export.trace import STAGES, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_component_stage_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    progress = Progress("unet")
    for stage in STAGES:
        progress.stage(stage)
        if stage == "save":
            progress.saved(30_000_000)
            progress.saved(1_700_000_000)
    progress.close()
    shown = terminal.getvalue()
    assert shown.count("unet: ") >= len(STAGES)
    places = [shown.index(f"{stage}, ") for stage in STAGES]
    assert places == sorted(places)
    assert "load, 0 MB written" in shown
    assert "save, 30 MB written" in shown
    assert "compare, 1,730 MB written" in shown


def test_nothing_is_shown_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    progress = Progress("unet")
    progress.stage("load")
    progress.close()
    assert file.getvalue() == ""
