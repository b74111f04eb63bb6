"""Goodput of every batcher under every workload on a fake accelerator, and their ratios."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from bench.reporting.measures import Measure
from bench.simulated.batchers import BATCHERS
from bench.simulated.fairness import fairness
from bench.simulated.simulation import GRID, Goodput, Settings, goodputs
from bench.traffic.mix_options import SAMPLERS, WORKLOADS
from bench.traffic.slo import ATTAINMENT

LIMITS = (5.0, 3.0)
# The limit at which a workload's ratios are quoted.
QUOTED: Mapping[str, float] = {"mixed": 5.0, "uniform": 3.0}
BASELINES = ("static", "serial")
SHARES = ("rows_per_call", "idle_share", "host_share")
LEAST_REQUESTS = 20
# Of the requests, in the search that tells where to begin.
ROUGH_PART = 6
SHOWN_ROWS = (2, 4, 8, 16)
Found: TypeAlias = dict[float, list[Goodput]]


def compared(
    names: Sequence[str], settings: Settings, seeds: int, processes: int
) -> tuple[dict[str, Any], list[Measure]]:
    """Goodput in images a second and its ratios; `low` and `high` are over the arrival sequences."""
    found = all_searched(names, settings, seeds, processes)
    figures = {
        **{name: summary(name, found[name], settings) for name in names},
        **{share: {name: at_goodput(name, found[name], share) for name in names} for share in SHARES},
        "fairness": fairness(settings),
        "settings": {**described(settings), "seeds": seeds},
    }
    return figures, [measure for name in names for measure in measures(name, found[name])]


def measures(workload: str, found: Mapping[str, Found]) -> list[Measure]:
    """Goodput at every limit, a sample for each arrival sequence."""
    return [
        Measure(
            f"simulated goodput, {workload}, {batcher}, at {k:g}x",
            statistics.mean(goodput.rate for goodput in reached),
            "images/s",
            "higher" if batcher == "in_flight" else None,
            [goodput.rate for goodput in reached],
        )
        for batcher, limits in found.items()
        for k, reached in limits.items()
    ]


def all_searched(
    workloads: Sequence[str], settings: Settings, seeds: int, processes: int
) -> dict[str, dict[str, Found]]:
    """Every batcher under every workload, so many at a time; of a process only its own work counts as the host's."""
    cases = [(workload, batcher) for workload in workloads for batcher in BATCHERS]
    search = partial(searched, settings=settings, seeds=seeds)
    if processes == 1:
        results = [search(*case) for case in cases]
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            results = list(pool.map(search, *zip(*cases, strict=True)))
    found: dict[str, dict[str, Found]] = {workload: {} for workload in workloads}
    for (workload, batcher), result in zip(cases, results, strict=True):
        found[workload][batcher] = result
    return found


def searched(workload: str, batcher: str, settings: Settings, seeds: int) -> Found:
    """Goodput at every limit, for each arrival sequence; each search begins where the one before ended.

    The first is a rough one, of fewer requests, that does not count.
    """
    peak = _peak(workload, settings)
    rough = replace(settings, requests=max(LEAST_REQUESTS, settings.requests // ROUGH_PART))
    near = dict.fromkeys(LIMITS, peak / 2)
    found: Found = {k: [] for k in LIMITS}
    for size, seed in ((rough, 0), *((settings, seed) for seed in range(seeds))):
        load = size.load(WORKLOADS[workload], seed)
        for k, goodput in goodputs(batcher, size, load, peak, near).items():
            near[k] = goodput.rate or near[k]
            if size is settings:
                found[k].append(goodput)
    return found


def summary(workload: str, found: Mapping[str, Found], settings: Settings) -> dict[str, Any]:
    """All figures of a workload; its ratios are those at the limit that is quoted for it."""
    peak = _peak(workload, settings)
    limits = {k: _compared({batcher: found[batcher][k] for batcher in found}, peak) for k in sorted(LIMITS)}
    quoted = limits[QUOTED[workload]]
    return {
        **{f"ratio_vs_{baseline}": quoted[f"ratio_vs_{baseline}"] for baseline in BASELINES},
        "ratios_at_k": QUOTED[workload],
        "peak": peak,
        "k": {f"{k:g}": figures for k, figures in limits.items()},
    }


def _compared(found: Mapping[str, Sequence[Goodput]], peak: float) -> dict[str, Any]:
    """One limit: goodput of every batcher, and how many times those of the baselines the loop reaches."""
    rates = {batcher: [goodput.rate for goodput in goodputs] for batcher, goodputs in found.items()}
    figures: dict[str, Any] = {}
    for batcher, values in rates.items():
        mean = statistics.mean(values)
        figures[batcher] = {"goodput": mean, "low": min(values), "high": max(values), "share_of_peak": mean / peak}
    for baseline in BASELINES:
        ratios = [ours / theirs for ours, theirs in zip(rates["in_flight"], rates[baseline], strict=True) if theirs]
        whole = len(ratios) == len(rates[baseline])
        mean = statistics.mean(rates[baseline])
        figures[f"ratio_vs_{baseline}"] = statistics.mean(rates["in_flight"]) / mean if mean else None
        figures[f"ratio_vs_{baseline}_low_high"] = [min(ratios), max(ratios)] if whole else None
    return figures


def at_goodput(workload: str, found: Mapping[str, Found], share: str) -> dict[str, float | None]:
    """The mean of one of `SHARES` in the runs at the goodput that is quoted, by batcher."""
    means: dict[str, float | None] = {}
    for batcher, limits in found.items():
        values = [getattr(goodput.run, share) for goodput in limits[QUOTED[workload]] if goodput.run]
        means[batcher] = statistics.mean(values) if values else None
    return means


def described(settings: Settings) -> dict[str, Any]:
    """What the figures rest on."""
    curve = settings.curve
    return {
        "device": "a model, not a measurement: see bench/simulated/accelerator.py",
        "call_seconds": {str(rows): curve.seconds(rows) for rows in SHOWN_ROWS},
        "call_tflops": {str(rows): curve.tflops(rows) for rows in SHOWN_ROWS},
        "max_rows": settings.max_rows,
        "latent": list(settings.shape),
        "requests": settings.requests,
        "warm_up": settings.warm_up,
        "steps": {name: list(steps) for name, steps in WORKLOADS.items()},
        "samplers": list(SAMPLERS),
        "attainment": ATTAINMENT,
        "rates_apart": GRID,
    }


def _peak(workload: str, settings: Settings) -> float:
    return settings.curve.peak(statistics.mean(WORKLOADS[workload]), settings.max_rows)
