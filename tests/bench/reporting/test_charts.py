"""Drawings that stand inside a page."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from bench.reporting.charts import DRAWN_POINTS, NAMED, VARIABLES, _outline, drawn
from bench.reporting.measures import Kind, Plot

SVG = "{http://www.w3.org/2000/svg}"


def _texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("kind", ["curve", "histogram", "timeline"])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_drawing_is_well_formed_and_takes_its_colours_from_the_page(kind: Kind, logarithmic: bool) -> None:
    series = {"_a $x_1$ <b>": [(0.0, 1.0), (1.0, 30.0), (3.0, 200.0)], "b": [(2.0, 0.0)], "empty": []}
    svg = drawn(Plot("t & <u>", kind, "$ per s", "100 %", series, logarithmic), "d0")
    texts = _texts(svg)
    assert {"_a $x_1$ <b>", "b", "$ per s", "100 %"} <= set(texts)
    assert "empty" not in texts
    assert not any(colour in svg for colour in VARIABLES)
    assert not any("mathdefault" in text for text in texts)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "t & <u>"
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(set(ids)) == len(ids)
    assert all(str(one).startswith("d0-") for one in ids)
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert references
    assert set(references) <= set(ids)


def test_the_same_plot_gives_the_same_drawing() -> None:
    plot = Plot("t", "curve", "x", "y", {"a": [(0, 1), (1, 2)]})
    assert drawn(plot, "d") == drawn(plot, "d")


def test_nothing_is_drawn_of_no_points() -> None:
    assert drawn(Plot("t", "curve", "x", "y", {"a": []}), "d") == ""


def test_a_logarithmic_axis_without_anything_above_zero_stays_linear() -> None:
    assert "0.00" in _texts(drawn(Plot("t", "curve", "x", "y", {"a": [(5, 0), (6, 0)]}, logarithmic=True), "d"))


def test_long_lines_are_thinned_and_many_names_are_counted() -> None:
    waves = {f"s{n}": [(x / 50, math.sin(x / 7 + n)) for x in range(1000)] for n in range(NAMED + 3)}
    svg = drawn(Plot("t", "timeline", "x", "y", waves), "d")
    assert len(svg) < 60 * DRAWN_POINTS * len(waves)
    assert "and 3 more" in _texts(svg)
    assert f"s{NAMED}" not in _texts(svg)


def test_bars_that_touch_share_their_edge_and_others_fall_to_zero() -> None:
    x, y = _outline([(1.0, 4.0), (2.0, 6.0), (5.0, 1.0)])
    assert x == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 4.5, 4.5, 5.5, 5.5]
    assert y == [0.0, 4.0, 4.0, 6.0, 6.0, 0.0, 0.0, 1.0, 1.0, 0.0]
