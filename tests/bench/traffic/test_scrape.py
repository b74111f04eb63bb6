"""A server's metrics."""

from __future__ import annotations

from bench.traffic import scrape
from bench.traffic.timelines import Watched


def test_metrics_are_read_and_compared() -> None:
    before = scrape.parse_metrics(
        '# HELP x y\naquatint_requests_total{outcome="ok"} 3\naquatint_running{bucket="64x64"} 2\n'
        'aquatint_running{bucket="128x128"} 1\nnv_other 5\n'
    )
    after = {**before, 'aquatint_requests_total{outcome="ok"}': 10.0, 'aquatint_requests_total{outcome="error"}': 1.0}
    assert scrape.total(before, "running") == 3
    assert scrape.total(before, "waiting") == 0
    assert scrape.grown(before, after) == {'requests_total{outcome="error"}': 1, 'requests_total{outcome="ok"}': 7}


def reading(at: float, calls: int, rows: int, waiting: int) -> tuple[float, dict[str, float]]:
    labels = 'bucket="64x64"'
    return at, {
        f"aquatint_rows_per_call_count{{{labels}}}": calls,
        f"aquatint_rows_per_call_sum{{{labels}}}": rows,
        f"aquatint_waiting{{{labels}}}": waiting,
        'aquatint_requests_total{outcome="ok"}': calls,
    }


def calls(at: float, *within: int) -> tuple[float, dict[str, float]]:
    """Of two, four and more rows, by the server's histogram."""
    name = "aquatint_rows_per_call"
    counts = {f'{name}_bucket{{bucket="64x64",le="{le}"}}': n for le, n in zip((2, 4, "+Inf"), within, strict=True)}
    return at, {**counts, f'{name}_count{{bucket="64x64"}}': within[-1], f'{name}_sum{{bucket="64x64"}}': 0}


def test_the_smallest_and_the_largest_call_of_a_while_are_bounded() -> None:
    watched = Watched([calls(10, 0, 0, 0), calls(11, 2, 2, 2), calls(12, 2, 5, 5), calls(13, 2, 5, 9)])
    lines = watched.rows_per_call(10)
    assert lines["above"] == [(0, 0.0), (1, 2.0), (2, 4.0)]
    assert lines["up to"] == [(0, 2.0), (1, 4.0), (2, float("inf"))]


def test_readings_become_timelines() -> None:
    watched = Watched([reading(10, 0, 0, 0), reading(11, 4, 40, 3), reading(12, 4, 40, 1), reading(14, 10, 124, 0)])
    assert watched.rows_per_call(10) == {"mean": [(0, 10.0), (2, 14.0)]}
    assert watched.gauges("waiting", 10) == [(0, 0), (1, 3), (2, 1), (4, 0)]
    assert watched.rates("requests_total", 10) == [(0, 4.0), (1, 0.0), (2, 3.0)]
    assert [plot.kind for plot in watched.plots("8 at a time", 10)] == ["timeline"] * 3
    assert Watched([reading(10, 0, 0, 0)]).plots("x", 10) == []
