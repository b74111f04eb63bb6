"""A page that opens from disk and says what it is of."""

from __future__ import annotations

import importlib.util
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.reporting import pages
from bench.reporting.measures import Measure, Plot
from bench.reporting.reading import read
from server.errors import ServerError
from tests.written_results import written

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Checked(HTMLParser):
    """Elements that close in order, the texts, ids and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attributes)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.addresses += [named[key] or "" for key in ("href", "src", "xlink:href") if key in named]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _checked(html: str) -> Checked:
    checked = Checked()
    checked.feed(html)
    checked.close()
    assert checked.open == []
    return checked


def _file(folder: Path, name: str, **more: object) -> Path:
    measures = [Measure.median("p99 <at> 8", [9.0, 9.5, 11.0], "ms", "lower"), Measure("share", 0.25)]
    plots = [
        Plot("latency", "curve", "rate", "ms", {"ours": [(1, 2), (2, 3)], "theirs": [(1, 4)]}),
        Plot("nothing", "timeline", "s", "rows", {}),
    ]
    return written(folder / name, measures, plots, **more)  # type: ignore[arg-type]


def test_a_page_has_figures_drawings_and_what_it_takes_to_measure_again(tmp_path: Path) -> None:
    result = read(_file(tmp_path, "a.json", own={"note": "<script>alert(1)</script>"}))
    html = pages.page([result])
    checked = _checked(html)
    text = " ".join(checked.texts)
    for words in ("p99 <at> 8", "9.5 ms", "9 to 11 (3)", result.command, result.date, "Python 3", "no points"):
        assert words in text
    assert checked.tags.count("svg") == 1
    assert "script" not in checked.tags
    assert len(set(checked.ids)) == len(checked.ids)
    assert all(address.startswith("#") and address[1:] in checked.ids for address in checked.addresses)
    assert "http" not in html.replace("http://www.w3.org/", "")


def test_partial_and_failed_results_are_marked(tmp_path: Path) -> None:
    files = [
        _file(tmp_path, "whole.json"),
        _file(tmp_path, "half.json", partial=True),
        _file(tmp_path, "bad.json", failures=["one was lost"], note="a busy machine"),
    ]
    results = [read(file) for file in files]
    assert 'class="mark' not in pages.page(results[:1])
    html = pages.page(results, unread=["c.json is no JSON"])
    assert html.count('class="mark partial"') == 1
    assert html.count('class="mark failed"') == 1
    text = " ".join(_checked(html).texts)
    for words in ("one was lost", "a busy machine", "c.json is no JSON", "half.json", "ended before its time"):
        assert words in text


def test_a_page_of_many_large_results_stays_small(tmp_path: Path) -> None:
    waves = {f"line {n}": [(x / 7, (x * 7919 + n) % 101) for x in range(5000)] for n in range(3)}
    plots = [Plot(f"p{n}", "timeline", "s", "rows", waves) for n in range(3)]
    own = [{"request": n} for n in range(50_000)]
    results = [read(written(tmp_path / f"{n}.json", [Measure("m", n)], plots, own=own)) for n in range(2)]
    assert len(pages.page(results).encode()) < 2_000_000


def test_a_missing_library_is_told_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(ServerError, match=r"needs jinja2: install the extra, `pip install '.\[bench\]'`"):
        pages.require()
