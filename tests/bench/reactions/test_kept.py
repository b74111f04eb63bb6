"""What single requests took, as figures and drawings."""

from __future__ import annotations

import pytest

from bench.reactions.kept import RATIO, REFUSAL, Kept, histograms, medians


def test_each_way_has_a_median_but_refusals_and_all_have_drawings() -> None:
    kept: Kept = {
        "rows freed": {"stream": [3.0, 1.0, 2.0], "id": []},
        f"guest {RATIO}": {"": [1.1, 1.3]},
        f"{REFUSAL}, full": {"unary": [4.0]},
    }
    found = {measure.name: measure for measure in medians(kept)}
    assert list(found) == ["rows freed (stream), median", f"guest {RATIO}, median"]
    assert found["rows freed (stream), median"].value == 2.0
    assert [measure.unit for measure in found.values()] == ["ms", ""]
    assert [(plot.title, plot.x, list(plot.series)) for plot in histograms(kept)] == [
        ("Rows freed", "ms", ["stream", "id"]),
        (f"Guest {RATIO}", "times", [f"guest {RATIO}"]),
        ("Refusal, full", "ms", ["unary"]),
    ]


def test_a_drawing_leaves_out_the_slowest_hundredth() -> None:
    (plot,) = histograms({"latency": {"unary": [*range(199), 10_000.0]}})
    assert sum(count for _, count in plot.series["unary"]) == 198
    assert max(middle for middle, _ in plot.series["unary"]) == pytest.approx(197, abs=10)
