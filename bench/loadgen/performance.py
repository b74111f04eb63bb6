"""What a performance run amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.loadgen.answering import Answered, Answering
from bench.loadgen.rules import Scenario
from bench.loadgen.summary import Summary, read_summary
from bench.reporting.measures import Measure, Plot, distribution, told
from bench.traffic.latencies import milliseconds

# The fewest queries of which each is another than the largest latency.
PERCENTILES = {"p50": 2, "p90": 10, "p99": 100}


def told_of(answering: Answering, scenario: Scenario, folder: Path) -> dict[str, Any]:
    """LoadGen's figures and verdict; ours alone where its run did not come to its end.

    Raises:
        ServerError: LoadGen left no summary.
    """
    answered = [one for one in answering.answered if not one.failure]
    failures = answering.failures()
    own = {
        "queries": answering.counts(),
        "latency_ms": milliseconds([one.ended - one.issued for one in answered]),
        "failures": failures,
    }
    if answering.stopped:
        return {**own, "valid": False, "reasons": list(failures), **told([], plots(answered))}
    summary = read_summary(folder)
    # A query that failed was answered sooner than any that was drawn, and counts as one in LoadGen's figures.
    measures = [] if failures else measures_of(scenario, summary, len(answered))
    return {
        **own,
        "valid": summary.valid and not failures,
        "reasons": [*failures, *summary.reasons],
        "loadgen": dict(summary.figures),
        **told(measures, plots(answered)),
    }


def measures_of(scenario: Scenario, summary: Summary, queries: int) -> list[Measure]:
    """Images a second, and those percentiles of latency that so many queries have, as LoadGen has them."""
    percentiles = {name: summary.percentiles[name] for name, fewest in PERCENTILES.items() if queries >= fewest}
    throughput = Measure(f"{scenario} throughput", summary.samples_per_second(scenario), "images/s", "higher")
    latencies = [Measure(f"{scenario} latency {name}", value, "ms", "lower") for name, value in percentiles.items()]
    return [throughput, *latencies]


def plots(answered: Sequence[Answered]) -> list[Plot]:
    """Latencies as a histogram, and the queries open over time."""
    if not answered:
        return []
    bars = distribution([1e3 * (one.ended - one.issued) for one in answered])
    return [
        Plot("Latency of LoadGen's queries", "histogram", "latency (ms)", "queries", {"queries": bars}),
        Plot("LoadGen's open queries", "timeline", "time (s)", "queries", {"open": open_queries(answered)}),
    ]


def open_queries(answered: Sequence[Answered]) -> list[tuple[float, float]]:
    """How many there are from each moment on, in seconds since the first."""
    moves = sorted([(one.issued, 1) for one in answered] + [(one.ended, -1) for one in answered])
    levels = np.cumsum([move for _, move in moves])
    return [(moment - moves[0][0], float(level)) for (moment, _), level in zip(moves, levels, strict=True)]
