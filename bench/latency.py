"""What the server adds to a request, and how soon it reacts: on a fake accelerator, in the real Triton."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.reactions.crowd import CROWD, crowd
from bench.reactions.kept import Kept, histograms, medians, slowest
from bench.reactions.leaving import leaving
from bench.reactions.overhead import overhead
from bench.reporting.measures import Measure, told
from bench.simulated.accelerator import ACCELERATORS
from engines.errors import EngineError
from server.errors import ServerError

PARTS = {
    "overhead": "Triton and our models, over the same service in process",
    "cancel": "from a client's leaving to the next request's first UNet call",
    "refusal": "requests that find no room, or whose deadline cannot be met",
    "deadline": "requests whose deadline passes",
    "guest": "a 10-step job among 50-step jobs that fill every call",
}
# Milliseconds, but for the guest's stretch, and the cancellation's on top of one step.
ADDED_P50, FREED_P99, REFUSED_P99, LATE_P99, GUEST_STRETCH = 2.0, 50.0, 10.0, 50.0, 1.5


def add_options(parser: argparse.ArgumentParser) -> None:
    listed = "; ".join(f"{name}: {meaning}" for name, meaning in PARTS.items())
    parser.add_argument("--parts", default=",".join(PARTS), help=f"with commas, of these: {listed}")
    parser.add_argument(
        "--repeats",
        type=int,
        default=100,
        help="of every measurement; 100 take some six minutes, and fewer have no p99",
    )
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="h100", help="model of a device")
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    parser.add_argument("--log", type=Path, default=Path("out/triton.log"), help="file for the server's messages")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of the parts, and how they stand to their targets.

    What fails after the first part is told in `failures`, beside what there is.

    Raises:
        ServerError: an unknown part, or a server that does something else than what is measured.
    """
    parts = [part.strip() for part in options.parts.split(",")]
    if unknown := [part for part in parts if part not in PARTS]:
        raise ServerError(f"--parts has {', '.join(unknown)}: give some of {', '.join(PARTS)}")
    if options.repeats < 1:
        raise ServerError(f"--repeats is {options.repeats}: give at least 1")
    kept: Kept = {}
    found: dict[str, Any] = {}
    ended: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 2)}
    try:
        _measure(options, parts, kept, found)
    except (ServerError, EngineError, KeyboardInterrupt) as error:
        if not any(found.values()):
            raise
        ended |= {"partial": True, "failures": [str(error) or "interrupted"]}
    settings = {"repeats": options.repeats, "accelerator": options.accelerator}
    against = targets(found)
    measures = {measure.name: measure for measure in (*_measures(against), *medians(kept))}
    return {"targets": against, **ended, **found, **told([*measures.values()], histograms(kept)), "settings": settings}


def _measure(options: argparse.Namespace, parts: Sequence[str], kept: Kept, found: dict[str, Any]) -> None:
    if "overhead" in parts:
        found["overhead"] = overhead(options.model, options.repeats, options.log, kept)
    if "cancel" in parts:
        found["cancel"] = leaving(options.model, options.accelerator, options.repeats, options.log, kept)
    if rest := [part for part in parts if part not in ("overhead", "cancel")]:
        crowd(options.model, options.accelerator, rest, options.repeats, options.log, kept, found)


def _measures(against: Mapping[str, Mapping[str, Any]]) -> Iterator[Measure]:
    """What is compared with targets, their unit apart from their name."""
    for name, figure in against.items():
        bare = name.removesuffix(" ms")
        yield Measure(bare, figure["value"], "" if bare == name else "ms", "lower")


def targets(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each target: what was measured, what is allowed, whether it is met.

    A target of p99 is set against the largest, and called so, where fewer than 100 were measured.
    """
    figures: dict[str, tuple[float, float]] = {}
    if "overhead" in found:
        figures["added latency of unary requests, p50 ms"] = found["overhead"]["added_ms"]["unary"]["p50"], ADDED_P50
    if "cancel" in found:
        for way, figure in found["cancel"]["freed_ms"].items():
            word, value = slowest(figure)
            figures[f"rows freed after leaving ({way}), {word} ms"] = value, FREED_P99 + found["cancel"]["step_ms"]
    for reason, floods in found.get("refusal", {}).items():
        for flood, figure in floods.items():
            # Of many at a time, each waits for the work on all the others.
            if flood.endswith(f"{CROWD} at a time"):
                continue
            word, value = slowest(figure)
            figures[f"refusal ({reason}, {flood}), {word} ms"] = value, REFUSED_P99
    for state, figure in found.get("deadline", {}).items():
        word, value = slowest(figure)
        figures[f"answer after the deadline ({state}), {word} ms"] = value, LATE_P99
    if "guest" in found:
        for name in ("median", "worst"):
            figures[f"guest's time over its time alone, {name}"] = found["guest"]["ratio"][name], GUEST_STRETCH
    return {
        name: {"value": round(value, 3), "target": round(limit, 3), "met": value <= limit}
        for name, (value, limit) in figures.items()
    }
