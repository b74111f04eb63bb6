"""The highest rate of requests that a server serves in time; or, dry, what the scheduler is worth on a fake device.

Goodput is the highest rate of random arrivals at which a share of the requests (95 %) ends within so many times its
latency alone, or within so many milliseconds. It is found by bisection. A trial at a rate ends when a Wilson interval
lies on one side of the share, those that pass not before a slowly growing queue would show. Trials at both sides of the
border are repeated with other arrivals. Low and high are an approximate 95 % interval of the border, by all trials
together, in which all requests that come within twice the longest limit count as one independent trial at most.

With --dry-run three ways of batching are compared on a model of a device, whose seconds are skipped.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from bench.reporting.measures import told
from bench.serving import add_server_options
from bench.simulated.accelerator import ACCELERATORS
from bench.simulated.dry_run import LEAST_REQUESTS, compared
from bench.simulated.simulation import Settings
from bench.traffic.live_goodput import LIVE_REQUESTS, add_live_options, live
from bench.traffic.mix_options import IN_MIX, WORKLOADS, add_mix_options
from bench.traffic.slo import add_slo_options
from server.errors import ServerError

DRY_REQUESTS = 1500
# A dry run has requests and limits of its own.
LIVE_ONLY = ("slo", "slo_ms", *IN_MIX, "cv", "url", "fake")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="on a fake accelerator, in virtual time")
    parser.add_argument(
        "--workload", help=f"{' or '.join(WORKLOADS)}; dry: these or all (default); else a YAML file may be given"
    )
    parser.add_argument(
        "--requests", type=int, help=f"that count, in each run ({DRY_REQUESTS} dry, else {LIVE_REQUESTS} at most)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="arrival sequences; live, at each side of the border")
    add_slo_options(parser)
    add_server_options(parser)
    add_mix_options(parser)
    add_live_options(parser)
    dry = parser.add_argument_group("with --dry-run")
    dry.add_argument("--accelerator", choices=ACCELERATORS, default="h100", help="model of a device")
    dry.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="simulations at a time")
    dry.add_argument("--latent", type=int, default=8, help="side of the latents, 64 for those of 512 x 512 pixels")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Goodput and what it rests on.

    Raises:
        ServerError: numbers that are too small, no server, or one that does not take such requests.
    """
    if options.requests is None:
        options.requests = DRY_REQUESTS if options.dry_run else LIVE_REQUESTS
    least = (("max_rows", 2), ("requests", LEAST_REQUESTS), ("seeds", 1), ("latent", 1), ("processes", 1))
    for name, number in least:
        if getattr(options, name) < number:
            raise ServerError(f"--{name.replace('_', '-')} is {getattr(options, name)}: give at least {number}")
    return dry(options) if options.dry_run else live(options)


def dry(options: argparse.Namespace) -> dict[str, Any]:
    """Goodput in images a second, and its ratios to static and serial batches.

    Raises:
        ServerError: there is no such workload, or an option says what a dry run does not have.
    """
    if said := [name for name in LIVE_ONLY if getattr(options, name, None) is not None]:
        raise ServerError(f"--{said[0].replace('_', '-')} is for a live server: leave it out, or --dry-run")
    wanted = options.workload or "all"
    if wanted not in (*WORKLOADS, "all"):
        raise ServerError(f"--workload is {wanted}: a dry run has {', '.join(WORKLOADS)} and all")
    settings = Settings(ACCELERATORS[options.accelerator], options.max_rows, options.requests, options.latent)
    names = tuple(WORKLOADS) if wanted == "all" else (wanted,)
    figures, measures = compared(names, settings, options.seeds, options.processes)
    figures["settings"] |= {"accelerator": options.accelerator}
    return {**figures, **told(measures)}
