"""A sweep in the words of every measurement: measures for each point, curves over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.reporting.measures import Better, Measure, Plot, distribution
from bench.traffic.points import Point
from bench.traffic.tally import STRETCHES

PERCENTILES = ("p50", "p90", "p95", "p99")
Report = Mapping[str, Any]
Line = list[tuple[float, float]]


def measures(
    reports: Sequence[Report], alone_ms: Mapping[str, float], repetitions: Mapping[str, Sequence[float]] | None = None
) -> list[Measure]:
    """Of every point.

    Args:
        alone_ms: by step count.
        repetitions: of the same, each as often as it was asked alone.
    """
    again = repetitions or {}
    found = [
        Measure(f"latency alone, {steps} steps", ms, "ms", "lower", again.get(steps, ()))
        for steps, ms in alone_ms.items()
    ]
    for report in reports:
        found += _of_point(report, f"at {report['load']}")
    return found


def _of_point(report: Report, at: str) -> list[Measure]:
    served, previews = report["latency_ms"].get("ok", {}), report["first_preview_ms"]

    def figure(name: str, value: float, unit: str, better: Better | None) -> Measure:
        low, high = report["intervals"].get(name, (None, None))
        return Measure(f"{name} {at}", value, unit, better, low=low, high=high)

    def latencies(name: str, figures: Mapping[str, float], better: Better | None) -> list[Measure]:
        """The percentiles that so many requests tell."""
        told = [one for one in PERCENTILES if one in figures and f"{name} {one}" in report["intervals"]]
        return [figure(f"{name} {one}", figures[one], "ms", better) for one in told]

    found = [
        Measure(f"requests {at}", report["sent"], "requests"),
        *([Measure(f"offered {at}", report["offered"], "requests/s")] if report["open_loop"] else []),
        figure("throughput", report["images_per_second"], "images/s", "higher"),
        *latencies("latency", served, "lower"),
        # It grows with the number of requests, and nothing tells how far it might lie off.
        *([Measure(f"latency max {at}", served["max"], "ms")] if "max" in served else []),
        *latencies("first preview", previews, "lower"),
        *(
            figure(f"goodput at {stretch}", value, "images/s", "higher")
            for stretch, value in report["goodput_images_per_second"].items()
        ),
    ]
    if slo := report.get("slo"):
        found.append(figure(f"goodput in {slo['ms']:g} ms", slo["images_per_second"], "images/s", "higher"))
        found.append(figure(f"share in {slo['ms']:g} ms", slo["share"], "", "higher"))
    if (rows := report["mean_rows_per_unet_call"]) is not None:
        found.append(Measure(f"rows per UNet call {at}", rows, "rows"))
    total = max(1, sum(report["outcomes"].values()))
    refused = sum(report["outcomes"].get(status, 0) for status in ("refused", "expired"))
    found.append(figure("refused or expired", round(refused / total, 5), "of requests", "lower"))
    found.append(figure("failed", round(report["failed"] / total, 5), "of requests", "lower"))
    return [*found, *latencies("sent late", report["late_sending_ms"], None)]


def plots(points: Sequence[Point], reports: Sequence[Report]) -> list[Plot]:
    """Curves over the points of a sweep, and what happened at each."""
    found = _curves(points, reports) if len(reports) > 1 else []
    latencies = {
        point.label: distribution([1e3 * o.seconds for o in point.outcomes if o.status == "ok"]) for point in points
    }
    found.append(Plot("Latency of requests that got their images", "histogram", "ms", "requests", latencies))
    for point in points:
        served = [o for o in point.outcomes if o.status == "ok"]
        ended = sorted(
            ((o.ended - point.begun, o) for o in served if o.timing.get("unet_calls")), key=lambda pair: pair[0]
        )
        rows = [(round(at, 3), o.timing["unet_rows"] / o.timing["unet_calls"]) for at, o in ended]
        late = [(round(o.intended - point.begun, 3), round(1e3 * o.seconds, 3)) for o in served]
        name = f"Mean rows of the calls of each request at {point.label}"
        found.append(Plot(name, "timeline", "seconds until its answer", "rows", {"rows": rows}))
        lines = {"latency": late}
        found.append(Plot(f"Latency over time at {point.label}", "timeline", "seconds when due", "ms", lines))
        found += point.watched.plots(point.label, point.begun)
    return found


def _curves(points: Sequence[Point], reports: Sequence[Report]) -> list[Plot]:
    served = [report for report in reports if "p50" in report["latency_ms"].get("ok", {})]
    latency: dict[str, Line] = {
        one: [
            (report["images_per_second"], report["latency_ms"]["ok"][one])
            for report in served
            if f"latency {one}" in report["intervals"]
        ]
        for one in ("p50", "p90", "p99")
    }
    goodput: dict[str, Line] = {"all": [(report["offered"], report["images_per_second"]) for report in reports]}
    for stretch in STRETCHES:
        name = f"{stretch:g}x"
        goodput[f"within {name}"] = [
            (report["offered"], report["goodput_images_per_second"][name]) for report in reports
        ]
    offered = "requests/s" if points[0].load.arrivals else "requests at a time"
    return [
        Plot("Latency over throughput", "curve", "images/s", "ms", latency),
        Plot("Goodput over load", "curve", offered, "images/s", goodput),
    ]
