"""README's performance section is what the kept results tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reporting.keeping import kept
from bench.reporting.measures import Measure
from bench.reporting.reading import read
from bench.reporting.readme import BEGIN, END, filled, section
from bench.reporting.results import ROOT
from server.errors import ServerError
from tests.written_results import written


def test_every_figure_has_its_command_machine_and_date(tmp_path: Path) -> None:
    measures = [Measure("a | b_c", 9.5, "ms", samples=(9.0, 10.0)), Measure("hidden", 1.0)]
    result = read(written(tmp_path / "a.json", measures, note="other work beside it", told=["a*"]))
    text = section([result])
    assert f"`{result.command}`" in text
    assert result.date[:10] in text
    assert "2 cores" in text or "cores" in text
    assert "other work beside it" in text
    assert r"| a \| b\_c | 9.5 ms | 9 to 10 (2) |" in text
    assert "hidden" not in text


def test_only_what_stands_between_the_marks_changes() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = filled(text, [])
    assert new == f"before\n{BEGIN}\n\n{section([])}\n\n{END}\nafter\n"
    assert filled(new, []) == new


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_document_without_a_place_is_refused(text: str) -> None:
    with pytest.raises(ServerError, match=r"D\.md has no place for the figures: put"):
        filled(text, [], "D.md")


def test_readme_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text, kept()) == text, "run `python -m bench figures --write README.md`"
