"""Load on a live server: so many requests at a time, or so many a second, and what became of them.

All requests of a process share one event loop (`grpc.aio`) and a few connections, so that a thousand may be open at
once. In an open loop, latency counts from when a request was to be sent, so that a client that falls behind does not
flatter the server. Several values of `--concurrency` or `--rate` are a sweep, one point each.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import secrets
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.reporting.measures import told
from bench.serving import Address, add_server_options, server_of
from bench.traffic.alone import Alone, measure_alone
from bench.traffic.arrivals import Arrivals, Bursts, Ramp
from bench.traffic.asking import Connections, Outcome, ask
from bench.traffic.identity import identity
from bench.traffic.loops import closed_loop
from bench.traffic.mix import SEEDS, Asked, Given, Kind, Mix
from bench.traffic.mix_options import faces, listed, said
from bench.traffic.points import METRICS_SECONDS, Load, Point, failures, figures, measure_point
from bench.traffic.spread import some
from bench.traffic.telling import measures, plots
from bench.traffic.trace import read_trace, size_of
from bench.traffic.workload import Workload, read_workload, settings
from server.errors import ServerError
from server.repository import FACE, STREAM

WARM_UP_SEED = 1_000_003
CONCURRENCY = 16
REQUESTS = 200


def ramp(text: str) -> tuple[float, float, float]:
    """Of `from:to:seconds`."""
    begin, end, seconds = (float(part) for part in text.split(":"))
    return begin, end, seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    parser.add_argument("--workload", type=Path, help="a YAML file, as in bench/workloads; options go before it")
    mix = parser.add_argument_group("requests", "where values are listed with commas, each is as likely")
    mix.add_argument("--face", type=faces, help="unary model, stream, both, or unary over http (unary)")
    mix.add_argument("--steps", type=listed(int), help="denoising steps, as 4,20,50 (20)")
    mix.add_argument("--samplers", type=listed(str), help="as euler,dpmpp_2m,ddim (euler)")
    mix.add_argument("--guidance", type=listed(float), help="1 or less takes one row, more takes two (7.5)")
    mix.add_argument("--size", type=listed(size_of), help="512, or height x width as 512x768 (the server's first)")
    mix.add_argument("--images", type=listed(int), help="of one request (1)")
    mix.add_argument("--format", type=listed(str), help="png, jpeg, webp, raw (png)")
    mix.add_argument("--clients", type=int, help="client ids that share the load; 0 sends none (0)")
    mix.add_argument("--cancel-share", type=float, help="of the requests, 0 to 1 (0)")
    mix.add_argument("--cancel-within", type=float, help="seconds after sending in which those end (1)")
    mix.add_argument("--malformed-share", type=float, help="of the requests, 0 to 1 (0)")
    mix.add_argument("--timeout-ms", type=int, help="that each request allows; 0 is for ever (0)")
    mix.add_argument("--preview-interval", type=int, help="steps between previews, on streams; 0 is none (0)")
    mix.add_argument("--seed", type=int, help="of requests and arrivals (0)")
    load = parser.add_argument_group("load")
    how = load.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=listed(int), help=f"open at a time, as 1,2,4,8 ({CONCURRENCY})")
    how.add_argument("--rate", type=listed(float), help="requests a second at random times (Poisson), as 2,4,6")
    how.add_argument("--ramp", type=ramp, metavar="FROM:TO:SECONDS", help="from one rate to another")
    how.add_argument("--trace", type=Path, help="a CSV file of recorded requests; see bench/traffic/trace.py")
    load.add_argument("--cv", type=float, default=1.0, help="variation of the gaps of --rate; above 1 comes in bursts")
    load.add_argument("--speed", type=float, default=1.0, help="how many times as quick a trace is played")
    load.add_argument("--requests", type=int, help=f"of each point ({REQUESTS} unless there is a duration)")
    load.add_argument("--duration", type=float, help="seconds in which requests are sent")
    load.add_argument("--warm-up", type=int, help="requests sent before, not counted (16)")
    load.add_argument("--repeats", type=int, help="of each kind alone, to learn its latency (3)")
    load.add_argument("--connections", type=int, help="of gRPC (4)")
    load.add_argument("--processes", type=int, help="that send (1)")
    load.add_argument("--limit", type=float, help="seconds; later answers count as lost (120)")
    load.add_argument("--slo-ms", type=float, help="count what is served within this too")
    load.add_argument("--scrape-seconds", type=float, default=1.0, help="between readings of the server's metrics")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Latencies by outcome, throughput, goodput, and what the server says of itself, for every point.

    Raises:
        ServerError: options that make no load, no server, or one that refuses a request of the mix alone.
    """
    workload = read_workload(options.workload) if options.workload else Workload()
    mix, loads = mix_of(options, workload), loads_of(options, workload)
    mix = replace(mix, salt=secrets.randbelow(SEEDS))
    prepared = _chosen(options, workload, "warm_up", 16), _chosen(options, workload, "repeats", 3)
    with server_of(options) as address:
        return asyncio.run(measured(address, mix, loads, max(0, prepared[0]), max(1, prepared[1])))


def _chosen(options: argparse.Namespace, workload: Workload, name: str, default: Any) -> Any:
    given = getattr(options, name)
    return workload.load.get(name, default) if given is None else given


def mix_of(options: argparse.Namespace, workload: Workload | None = None) -> Mix:
    """The mix that the options describe, and where they say nothing the workload.

    Raises:
        ServerError: shares that are none, or numbers below 0.
    """
    found = {**(workload.mix if workload else {}), **said(options)}
    if options.timeout_ms is not None:
        found["timeouts_ms"] = (options.timeout_ms,)
    mix = Mix(**found)
    shares = mix.cancel_share, mix.malformed_share
    if not (min(shares) >= 0 and sum(shares) <= 1):
        raise ServerError(f"--cancel-share and --malformed-share are {shares[0]} and {shares[1]}: give parts of 1")
    if isinstance(mix.clients, int) and mix.clients < 0:
        raise ServerError(f"--clients is {mix.clients}: give 0 or more")
    if not 0 <= mix.leave_within < math.inf:
        raise ServerError(f"--cancel-within is {mix.leave_within}: give seconds, 0 or more")
    return mix


def loads_of(options: argparse.Namespace, workload: Workload | None = None) -> list[Load]:
    """The points that the options describe, and where they say nothing the workload.

    Raises:
        ServerError: a number that is too small.
    """
    workload = workload or Workload()
    _check_numbers(options)
    _check_together(options)
    arrivals, concurrency = _arrivals(options, workload), options.concurrency or ()
    if not arrivals and not concurrency:
        concurrency = workload.concurrency or (CONCURRENCY,)
    seconds = _chosen(options, workload, "duration", None) if options.requests is None else options.duration
    count = options.requests if options.duration is not None else _chosen(options, workload, "requests", None)
    ended = any(arrival.given() or isinstance(arrival, Ramp) for arrival in arrivals)
    base = Load(
        concurrency=None,
        count=count or (None if seconds or ended else REQUESTS),
        seconds=seconds,
        connections=_chosen(options, workload, "connections", 4),
        processes=_chosen(options, workload, "processes", 1),
        limit=_chosen(options, workload, "limit", 120.0),
        slo_ms=_chosen(options, workload, "slo_ms", None),
        reading=options.scrape_seconds,
    )
    loads = [replace(base, arrivals=one) for one in arrivals]
    loads = loads or [replace(base, concurrency=one) for one in concurrency]
    labels = [load.label for load in loads]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ServerError(f"the sweep has {twice[0]} twice: give each point once")
    return loads


def _check_numbers(options: argparse.Namespace) -> None:
    positive = ("requests", "duration", "connections", "processes", "limit", "slo_ms", "scrape_seconds", "cv", "speed")
    for name in (*positive, "concurrency", "rate"):
        value = getattr(options, name)
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            if not 0 < one < float("inf"):
                raise ServerError(f"--{name.replace('_', '-')} is {one}: give a number above 0")


def _check_together(options: argparse.Namespace) -> None:
    for name, other in (("cv", "rate"), ("speed", "trace")):
        if getattr(options, name) != 1 and not getattr(options, other):
            raise ServerError(f"--{name} is {getattr(options, name):g}, which is of --{other}: give both, or neither")


def _arrivals(options: argparse.Namespace, workload: Workload) -> tuple[Arrivals, ...]:
    if options.rate:
        return tuple(Bursts(rate, options.cv) for rate in options.rate)
    if options.ramp:
        return (Ramp(*options.ramp),)
    if options.trace:
        return (read_trace(options.trace, options.speed),)
    return () if options.concurrency else workload.arrivals


async def measured(address: Address, mix: Mix, loads: list[Load], warm_up: int, repeats: int) -> dict[str, Any]:
    """Learn what each kind takes alone, after warming up, then send the loads one after another."""
    given = next((load.arrivals.given() for load in loads if load.arrivals), ())
    async with Connections(address.grpc, loads[0].connections, address.http) as connections:
        await check(connections, mix)
        server = await identity(connections[0])
        alone = await _prepared(connections, mix, loads[0], warm_up, repeats, given)
    if address.metrics:
        # They lag behind, and what was sent so far is not to be counted.
        await asyncio.sleep(METRICS_SECONDS)
    points, wrong = await _swept(address, mix, loads)
    return {**_result(points, alone, mix, loads, wrong), "environment": {"server": server} if server else {}}


async def _swept(address: Address, mix: Mix, loads: list[Load]) -> tuple[list[Point], list[str]]:
    """The points up to one that ends early, and why the next could not be measured.

    Raises:
        ServerError: there is no point.
    """
    points: list[Point] = []
    for number, load in enumerate(loads):
        # A request that was drawn at an earlier point may be answered from a cache, and its id may be open still.
        own = replace(mix, name=f"{mix.name}-{number}", seed=mix.seed + number)
        try:
            points.append(await measure_point(address, own, load))
        except ServerError as error:
            if not points:
                raise
            return points, [f"{load.label}: {error}"]
        if points[-1].reason:
            break
    return points, []


async def check(connections: Connections, mix: Mix) -> None:
    """Make sure that the server is one of ours.

    Raises:
        ServerError: what is wrong instead.
    """
    wanted = set(some(mix.faces))
    if "http" in wanted:
        await connections.http.check()
    models = [model for face, model in (("unary", FACE), ("stream", STREAM)) if face in wanted]
    if models:
        await connections[0].check(models)


async def _prepared(
    connections: Connections, mix: Mix, load: Load, warm_up: int, repeats: int, given: tuple[Given, ...]
) -> Alone:
    async def send(asked: Asked, intended: float) -> Outcome:
        return await ask(connections, asked, intended, load.limit)

    calm = replace(mix, cancel_share=0.0, malformed_share=0.0, timeouts_ms=(0,), seed=WARM_UP_SEED, name="warm-up")
    await closed_loop(calm.requests(warm_up, given), load.concurrency or CONCURRENCY, send)
    return await measure_alone(send, replace(calm, name="alone"), repeats, given)


def _result(points: list[Point], alone: Alone, mix: Mix, loads: list[Load], missing: list[str]) -> dict[str, Any]:
    reports = [figures(point, alone) for point in points]
    wrong = failures(points, reports) + missing
    for problem in dict.fromkeys(report["server_not_read"] for report in reports if "server_not_read" in report):
        print(f"online: {problem}", file=sys.stderr)
    single = reports[0] if len(loads) == 1 else {}
    by_steps = alone_by_steps(alone)
    return {
        **single,
        "points": reports,
        "alone_ms_by_steps": by_steps,
        "alone_ms": [{**_shown(kind), "ms": round(1e3 * s, 3)} for kind, s in alone.measured.items()],
        "partial": any(point.reason for point in points) or len(points) < len(loads),
        "failures": wrong,
        "settings": {"mix": settings(mix), "loads": [settings(load) | {"label": load.label} for load in loads]},
        **told(measures(reports, by_steps, repetitions_by_steps(alone)), plots(points, reports)),
    }


def _shown(kind: Kind) -> dict[str, Any]:
    """With null for a size that the server chose."""
    return {name: value or None if name in ("height", "width") else value for name, value in kind._asdict().items()}


def alone_by_steps(alone: Alone) -> dict[str, float]:
    """Mean milliseconds of the kinds that were measured, by step count."""
    steps = sorted({kind.steps for kind in alone.measured})
    return {
        str(n): round(1e3 * statistics.mean(s for kind, s in alone.measured.items() if kind.steps == n), 3)
        for n in steps
    }


def repetitions_by_steps(alone: Alone) -> dict[str, list[float]]:
    """The same, time after time."""
    found: dict[str, list[float]] = {}
    for steps in {kind.steps for kind in alone.repetitions}:
        taken = [seconds for kind, seconds in alone.repetitions.items() if kind.steps == steps]
        found[str(steps)] = [round(1e3 * statistics.mean(each), 3) for each in zip(*taken, strict=True)]
    return found
