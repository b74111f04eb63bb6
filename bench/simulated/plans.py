"""Plans as a table, as figures that can be compared, and as series that can be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.reporting.measures import Measure, Plot
from bench.simulated.planning import OneServer, Planned


def table(planned: Sequence[Planned]) -> Iterator[str]:
    """A line for each load, limit and way of batching."""
    names = ("requests/s", "limit", "batching", "servers", "sure", "used", "in time", "p50 s", "p99 s")
    yield "{:>10}  {:>8}  {:<10} {:>7}  {:>9}  {:>5}  {:>7}  {:>6}  {:>6}".format(*names)
    for one in sorted(planned, key=lambda each: (each.rate, each.slo)):
        sure = f"{one.low or '?'} to {one.high or '?'}"
        yield (
            f"{one.rate:>10g}  {one.slo:>8}  {one.batcher:<10} {one.servers:>7}  {sure:>9}  {one.used:>5.0%}  "
            f"{one.share:>7.1%}  {one.seconds['p50']:>6.2f}  {one.seconds['p99']:>6.2f}"
        )


def singles(single: Sequence[OneServer]) -> Iterator[str]:
    """A line for each limit and way of batching."""
    for one in single:
        high = "more" if one.high is None else f"{one.high:.3g}"
        yield f"one server, {one.batcher}, at {one.slo}: {one.rate:.3g} requests/s ({one.low:.3g} to {high})"


def measures(planned: Sequence[Planned], single: Sequence[OneServer]) -> Iterator[Measure]:
    """The figures that can be compared."""
    for one in single:
        yield Measure(
            f"one server, {one.batcher}, at {one.slo}",
            one.rate,
            "requests/s",
            "higher" if one.batcher == "in_flight" else None,
            low=None if one.high is None else one.low,
            high=one.high,
        )
    for each in planned:
        whole = each.low is not None and each.high is not None
        yield Measure(
            f"servers for {each.rate:g}/s at {each.slo}, {each.batcher}",
            each.servers,
            "servers",
            "lower" if each.batcher == "in_flight" else None,
            low=each.low if whole else None,
            high=each.high if whole else None,
        )


def plots(
    planned: Sequence[Planned], latencies: Mapping[str, Sequence[tuple[float, float]]], batcher: str
) -> list[Plot]:
    """Servers over load for each limit, and latency over load for some numbers of servers."""
    found = []
    for slo in dict.fromkeys(one.slo for one in planned):
        lines: dict[str, list[tuple[float, float]]] = {}
        for one in sorted((each for each in planned if each.slo == slo), key=lambda each: each.rate):
            lines.setdefault(one.batcher, []).append((one.rate, one.servers))
        found.append(Plot(f"servers for a load at {slo}", "curve", "requests/s", "servers", lines))
    if latencies:
        found.append(Plot(f"latency p99 over load, {batcher}", "curve", "requests/s", "seconds", latencies))
    return found
