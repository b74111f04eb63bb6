"""How many servers a load needs: the server's own scheduler, simulated on a measured step curve.

Requests come at random to servers behind a balancer, all in one virtual time. Each server is the real denoising loop,
scheduler and admission on a device that only takes the seconds of the curve; static batches and one image at a time
are there to compare. Prompts and latents cost what the offline result says, on the same device and one after the other;
every prompt counts as new. The host's own time is not counted unless --call-ms and --request-ms say it; `bench goodput`
on a live server tells them (`overheads`, against the curve).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, TypeVar, get_args

from bench.reporting.measures import told
from bench.simulated.accelerator import MeasuredCurve
from bench.simulated.batchers import BATCHERS
from bench.simulated.curves import Source, add_curve_options, source_of
from bench.simulated.fleet import Balancer, Costs
from bench.simulated.planning import Case, OneServer, Planned, Planner, one_server, tails
from bench.simulated.plans import measures, plots, singles, table
from bench.traffic.bisection import CONFIDENCE
from bench.traffic.mix_options import WORKLOADS, add_mix_options, listed, mix_of, variation_of
from bench.traffic.slo import Slo, add_slo_options, slos_of
from bench.traffic.workload import settings
from server.errors import ServerError

# Of what one server serves in time, where no load is given.
MULTIPLES = (1, 2, 4, 8)
# Of the most that servers could do, where their latencies are shown.
PARTS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN_FLEETS = 4
ENDED = "a process of the simulation was ended, perhaps for want of memory: give fewer --processes"
Result = TypeVar("Result")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_curve_options(parser)
    device = parser.add_argument_group("server")
    device.add_argument("--max-rows", type=int, default=16, help="rows of one UNet call; a guided image takes two")
    device.add_argument("--encode-ms", type=float, help="of both prompts on the device (--curve tells it)")
    device.add_argument("--decode-ms", type=float, help="of one image on the device (--curve tells it)")
    device.add_argument("--call-ms", type=float, default=0.0, help="that the host takes between two UNet calls")
    device.add_argument(
        "--request-ms", type=float, default=0.0, help="of a request outside the device, such as network"
    )
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=listed(float), help="requests a second, as 10,50,100 (multiples of one server's)")
    load.add_argument("--workload", help=f"{' or '.join(WORKLOADS)}, or a YAML file as `bench online` takes")
    add_mix_options(parser)
    add_slo_options(parser)
    plan = parser.add_argument_group("simulation")
    plan.add_argument("--balancer", choices=get_args(Balancer), default="least_outstanding", help="in front of them")
    plan.add_argument(
        "--batchers", type=listed(str), default=tuple(BATCHERS), help=f"some of {', '.join(BATCHERS)} (all)"
    )
    plan.add_argument("--requests", type=int, default=400, help="of a run, for each server that could do the work")
    plan.add_argument("--seeds", type=int, default=2, help="arrival sequences")
    plan.add_argument("--most-servers", type=int, default=500)
    plan.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="simulations at a time")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Servers for every load, limit and way of batching, and what one server takes.

    What fails after the first simulation, and loads for which there may not be servers enough, are told in `failures`,
    beside what there is.

    Raises:
        ServerError: numbers that are none, files that tell no curve, or limits that no number of servers meets.
    """
    _check(options)
    source, slos = source_of(options), slos_of(options)
    case = _case(options, source)
    for slo in slos:
        slo.check(case.alone, case.kinds, case.attainment)
    work, ended, failures = _Work(), False, list[str]()
    try:
        with _Tasks(options.processes) as tasks:
            _simulate(work, tasks, case, slos, options)
    except (ServerError, KeyboardInterrupt) as error:
        if not any(map(_succeeded, work.single)):
            raise
        ended, failures = True, [str(error) or "interrupted"]
    single = _results(work.single)
    planned = [one for plans, _ in _results(work.plans) for one in plans]
    failures += [why for _, missed in _results(work.plans) for why in missed]
    latencies = {f"{n} servers": each.result() for n, each in work.curves.items() if _succeeded(each)}
    notes = source.notes(options)
    print("\n".join([*table(planned), "", *singles(single), *(f"note: {note}" for note in notes)]))
    return {
        "plan": [asdict(one) for one in planned],
        "one_server": [asdict(one) for one in single],
        "notes": notes,
        "partial": ended,
        "failures": failures,
        "settings": {
            "curve": {"source": source.name, "points": source.points},
            "costs_ms": {name: getattr(options, name) for name in ("call_ms", "request_ms")}
            | {"encode_ms": 1e3 * case.costs.encode_seconds, "decode_ms": 1e3 * case.costs.decode_seconds},
            "mix": settings(case.mix),
            "cv": case.variation,
            "attainment": case.attainment,
            "confidence": CONFIDENCE,
            "alone_ms": {str(kind.steps): 1e3 * seconds for kind, seconds in case.alone.items()},
            **{name: getattr(options, name) for name in ("balancer", "requests", "seeds", "max_rows")},
        },
        **told(list(measures(planned, single)), plots(planned, latencies, options.batchers[0])),
    }


def _check(options: argparse.Namespace) -> None:
    for name, least in (("max_rows", 2), ("requests", 20), ("seeds", 1), ("most_servers", 1), ("processes", 1)):
        if getattr(options, name) < least:
            raise ServerError(f"--{name.replace('_', '-')} is {getattr(options, name)}: give at least {least}")
    for name in ("encode_ms", "decode_ms", "call_ms", "request_ms"):
        if not 0 <= (getattr(options, name) or 0.0) < float("inf"):
            raise ServerError(f"--{name.replace('_', '-')} is {getattr(options, name):g}: give no less than 0")
    for rate in options.rate or ():
        if not 0 < rate < float("inf"):
            raise ServerError(f"--rate has {rate:g}: give requests a second above 0")
    if unknown := set(options.batchers) - set(BATCHERS):
        raise ServerError(f"--batchers has {', '.join(sorted(unknown))}: give some of {', '.join(BATCHERS)}")


def _case(options: argparse.Namespace, source: Source) -> Case:
    mix, workload = mix_of(options, "capacity")
    costs = Costs(
        MeasuredCurve(source.points, options.call_ms / 1e3),
        options.max_rows,
        source.encode_seconds if options.encode_ms is None else options.encode_ms / 1e3,
        source.decode_seconds if options.decode_ms is None else options.decode_ms / 1e3,
        options.request_ms / 1e3,
    )
    variation = variation_of(options, workload)
    return Case(
        *(costs, mix, variation, options.balancer, options.attainment),
        *(options.requests, options.seeds, options.most_servers),
    )


class _Tasks:
    """Work for several processes, or for this one."""

    def __init__(self, processes: int) -> None:
        self._before = set(multiprocessing.active_children())
        self._pool = None
        if processes > 1:
            # Who hears of Ctrl-C is this process alone, which ends them.
            ignored = (signal.SIGINT, signal.SIG_IGN)
            self._pool = ProcessPoolExecutor(
                processes, multiprocessing.get_context("spawn"), initializer=signal.signal, initargs=ignored
            )

    def __enter__(self) -> _Tasks:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is None:
            return
        if any(exception):
            # What they are at may take minutes.
            for process in set(multiprocessing.active_children()) - self._before:
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def start(self, work: Any, *arguments: Any) -> Future[Any]:
        """Raises ServerError if no process is left to do it."""
        if self._pool is not None:
            try:
                return self._pool.submit(work, *arguments)
            except BrokenExecutor as error:
                raise ServerError(ENDED) from error
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done


@dataclass(frozen=True, slots=True)
class _Work:
    """What was started, in order; of loads the plans, and sentences for limits that no plan meets."""

    single: list[Future[OneServer]] = field(default_factory=list)
    plans: list[Future[tuple[list[Planned], list[str]]]] = field(default_factory=list)
    curves: dict[int, Future[list[tuple[float, float]]]] = field(default_factory=dict)


def _simulate(work: _Work, tasks: _Tasks, case: Case, slos: Sequence[Slo], options: argparse.Namespace) -> None:
    """All that is to be told, to its end."""
    first = options.batchers[0]
    for batcher, slo in product(options.batchers, slos):
        work.single.append(tasks.start(one_server, case, batcher, slo))
    rates = options.rate or _rates(_awaited(work.single))
    for batcher, rate in product(options.batchers, rates):
        work.plans.append(tasks.start(_planned, case, batcher, rate, slos))
    planned = [one for plans, _ in _awaited(work.plans) for one in plans]
    for servers in _fleets(planned, first):
        work.curves[servers] = tasks.start(tails, case, first, servers, PARTS)
    _awaited([*work.single, *work.curves.values()])


def _awaited(futures: Sequence[Future[Any]]) -> list[Any]:
    """Raises ServerError if a process has ended."""
    try:
        return [each.result() for each in futures]
    except BrokenExecutor as error:
        raise ServerError(ENDED) from error


def _succeeded(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _results(futures: Sequence[Future[Result]]) -> list[Result]:
    """Of those that came to their end."""
    return [each.result() for each in futures if _succeeded(each)]


def _planned(case: Case, batcher: str, rate: float, slos: Sequence[Slo]) -> tuple[list[Planned], list[str]]:
    """What each limit needs, and why some have no plan."""
    planner = Planner(case, batcher, rate)
    planned, missed = [], []
    for slo in slos:
        try:
            planned.append(planner.plan(slo))
        except ServerError as error:
            missed.append(str(error))
    return planned, missed


def _rates(single: Sequence[OneServer]) -> list[float]:
    reached = next((one.rate for one in single if one.rate), 0.0)
    if not reached:
        raise ServerError("one server serves no rate in time: allow more with --slo, or say the load with --rate")
    return [float(f"{multiple * reached:.3g}") for multiple in MULTIPLES]


def _fleets(planned: Sequence[Planned], batcher: str) -> list[int]:
    return sorted({one.servers for one in planned if one.batcher == batcher})[:SHOWN_FLEETS]
