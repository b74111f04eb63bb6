"""How truthful the sender of `bench online` is: by how much it sends late, at rates up to thousands a second.

Against `echo`, a server in a process of its own that answers at once: what the sender can do by itself. Against `fake`,
the real Triton on a UNet that only takes time: what is left of that where server and sender share a machine. Requests
are of one step, come at random (Poisson) and are all sent, whether the server keeps up or not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bench.reporting.measures import Measure, Plot, told
from bench.serving import Address, add_server_options, server_of
from bench.traffic import tally
from bench.traffic.arrivals import Bursts
from bench.traffic.echo import echoing
from bench.traffic.latencies import milliseconds
from bench.traffic.mix import FACES, Mix
from bench.traffic.mix_options import listed
from bench.traffic.points import Load, Point, measure_point
from engines.errors import EngineError
from server.errors import ServerError

TARGETS = ("echo", "fake")
RATES = (250.0, 500.0, 1000.0, 2000.0, 3000.0)
# Of the requests, which are as small as a request can be.
ONE_STEP = Mix(steps=(1,), guidance=(1.0,), formats=("raw",), name="harness")
DRAIN_SECONDS = 30.0


def add_options(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    group = parser.add_argument_group("sending")
    group.add_argument("--against", type=listed(str), default=TARGETS, help="echo, fake or both (both)")
    group.add_argument("--rates", type=listed(float), default=RATES, help="requests a second, as 500,1000,2000")
    group.add_argument("--seconds", type=float, default=10.0, help="at each rate (%(default)g)")
    group.add_argument("--goal-ms", type=float, default=5.0, help="that 99 %% are sent late at most (%(default)g)")
    group.add_argument("--processes", type=listed(int), default=(1, 2), help="that send, as 1,2 (1,2)")
    group.add_argument("--face", choices=FACES, default="unary", help="the unary model or the stream")


@dataclass(frozen=True, slots=True)
class Setting:
    """A server and so many processes that send."""

    target: str
    processes: int

    def __str__(self) -> str:
        return f"{self.target}, {self.processes} sending"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds between intended and actual sending, by server, processes and rate.

    Raises:
        ServerError, EngineError: options that make no load, or no server.
    """
    _check(options)
    found: dict[Setting, list[Point]] = {}
    stopped: list[str] = []
    for target in options.against:
        try:
            with _server(target, options) as address:
                stopped += _measured(address, target, options, found)
        except (ServerError, EngineError) as error:
            if not found:
                raise
            stopped.append(f"{target}: {error}")
        if stopped:
            break
    return _result(found, stopped, options)


def _measured(
    address: Address, target: str, options: argparse.Namespace, found: dict[Setting, list[Point]]
) -> list[str]:
    """Fills `found`, up to a load that ends early; gives why it did."""
    mix = replace(ONE_STEP, faces=(options.face,))
    for processes in options.processes:
        points = found[Setting(target, processes)] = []
        for rate in options.rates:
            points.append(_sent(address, mix, rate, processes, options))
            if points[-1].reason:
                return [f"{Setting(target, processes)} at {points[-1].label}: {points[-1].reason}"]
    return []


def _check(options: argparse.Namespace) -> None:
    for name in ("seconds", "goal_ms", "rates", "processes"):
        value = getattr(options, name)
        for one in value if isinstance(value, tuple) else (value,):
            if not 0 < one < float("inf"):
                raise ServerError(f"--{name.replace('_', '-')} is {one}: give a number above 0")
    if unknown := [name for name in options.against if name not in TARGETS]:
        raise ServerError(f"--against is {unknown[0]}: give {' or '.join(TARGETS)}")


@contextlib.contextmanager
def _server(target: str, options: argparse.Namespace) -> Iterator[Address]:
    if target == "echo":
        with echoing() as url:
            yield Address(url)
        return
    if options.url is None and options.fake is None:
        options.fake = "h100"
    with server_of(options) as address:
        # Reading metrics takes time from sending, and says nothing of it.
        yield replace(address, metrics=None)


def _sent(address: Address, mix: Mix, rate: float, processes: int, options: argparse.Namespace) -> Point:
    load = Load(None, Bursts(rate), None, options.seconds, processes=processes, limit=options.seconds + DRAIN_SECONDS)
    return asyncio.run(measure_point(address, replace(mix, name=f"{mix.name}-{processes}-{rate:g}"), load))


def _result(found: dict[Setting, list[Point]], stopped: list[str], options: argparse.Namespace) -> dict[str, Any]:
    rows = [_row(setting, point) for setting, points in found.items() for point in points]
    holds = {str(setting): _holds(setting, rows, options.goal_ms) for setting in found}
    measures = [
        Measure(f"sent late p99 at {row['rate']:g}/s, {row['setting']}", row["late_sending_ms"]["p99"], "ms", "lower")
        for row in rows
        if "p99" in row["late_sending_ms"]
    ]
    measures += [
        Measure(f"highest rate within {options.goal_ms:g} ms, {name}", rate, "requests/s", "higher")
        for name, rate in holds.items()
    ]
    lines = {
        str(setting): [
            (row["rate"], row["late_sending_ms"]["p99"])
            for row in rows
            if row["setting"] == str(setting) and "p99" in row["late_sending_ms"]
        ]
        for setting in found
    }
    plots = [Plot("Late sending, p99, over the rate", "curve", "requests/s", "ms", lines, logarithmic=True)]
    return {
        "partial": bool(stopped),
        "failures": stopped,
        "rates": rows,
        "holds_to_requests_per_second": holds,
        "settings": {"goal_ms": options.goal_ms, "seconds": options.seconds, "face": options.face},
        **told(measures, plots),
    }


def _row(setting: Setting, point: Point) -> dict[str, Any]:
    late = [outcome.sent - outcome.intended for outcome in point.outcomes]
    outcomes: dict[str, int] = {}
    for outcome in point.outcomes:
        outcomes[outcome.status] = outcomes.get(outcome.status, 0) + 1
    return {
        "setting": str(setting),
        "rate": point.load.offered,
        "late_sending_ms": milliseconds(late),
        "latency_ms": tally.latencies(point.outcomes),
        "outcomes": outcomes,
        "open_at_most": tally.open_at_most(point.outcomes),
        # Of one processor, by request: what bounds the rate of a process.
        "cpu_us_per_request": round(1e6 * point.cpu_seconds / max(1, len(point.outcomes)), 1),
        "load_average": os.getloadavg()[0],
    }


def _holds(setting: Setting, rows: list[dict[str, Any]], goal_ms: float) -> float:
    """The highest rate up to which requests are sent in time; 0 if there is none."""
    reached = 0.0
    for row in sorted((row for row in rows if row["setting"] == str(setting)), key=lambda row: float(row["rate"])):
        if not row["late_sending_ms"].get("p99", float("inf")) <= goal_ms:
            break
        reached = row["rate"]
    return reached
