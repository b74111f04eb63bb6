"""`bench goodput` on a live server."""

from __future__ import annotations

import argparse
import asyncio
import math
import secrets
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from bench.reporting.measures import Measure, Plot, told
from bench.serving import Address, server_of
from bench.traffic import loops, tally
from bench.traffic.alone import Alone, measure_alone
from bench.traffic.asking import Connections, Outcome, ask
from bench.traffic.attempt import Attempted, Terms, attempt
from bench.traffic.bisection import CONFIDENCE, LEAST_PARTS, PART, Search, Trial
from bench.traffic.identity import identity
from bench.traffic.mix import SEEDS, Asked, Kind, Mix
from bench.traffic.mix_options import faces, listed, mix_of, variation_of
from bench.traffic.slo import Slo, slos_of
from bench.traffic.trace import size_of
from bench.traffic.workload import settings
from server.errors import ServerError

LIVE_REQUESTS = 600
# Of a closed loop that tells roughly what the server can do, for each request open at a time.
ROUNDS = 4
# Rates that are tried: the highest so many times what a closed loop reached, the lowest that part of the highest.
ABOVE, DOWN = 6.0, 1 / 120
# Of what a closed loop reached, where the search begins.
BEGIN = 0.7
Item = TypeVar("Item")


def add_live_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on a live server")
    group.add_argument("--size", type=listed(size_of), help="512, or height x width as 512x768 (the server's first)")
    group.add_argument("--images", type=listed(int), help="of one request (1)")
    group.add_argument("--face", type=faces, help="unary, stream, both of these, or http (unary)")
    group.add_argument("--apart", type=float, default=0.05, help="by which neighbouring rates differ, a part of them")
    group.add_argument("--seconds", type=float, default=300.0, help="for each limit; then what is known is told")
    group.add_argument("--repeats", type=int, default=5, help="of each kind alone, to learn its latency")
    group.add_argument(
        "--limit", type=float, default=60.0, help="seconds without an answer that count as none, if not in time"
    )


def _check(options: argparse.Namespace) -> None:
    for name in ("apart", "seconds", "repeats", "limit"):
        if not 0 < getattr(options, name) < math.inf:
            raise ServerError(f"--{name} is {getattr(options, name):g}: give a number above 0")


@dataclass(slots=True)
class Reached:
    """What was found for one limit.

    Attributes:
        made: every trial, in the order in which they were made.
    """

    slo: Slo
    goal: float
    search: Search | None = None
    made: list[Attempted] = field(default_factory=list)

    @property
    def failure(self) -> str | None:
        """Why there is no rate, or none that ends the search; None if there is one."""
        if self.search is None or not self.made:
            return f"no trial was made at {self.slo}"
        standings = self.search.standings()
        if self.search.open:
            return f"{self.slo} is met at least up to {standings[-1].rate:.3g} requests/s, and nothing above was tried"
        if self.search.value:
            return None
        least = standings[0]
        ended = "" if self.search.complete else " (--seconds ended the search)"
        return (
            f"no rate down to {least.rate:.3g} requests/s meets {self.slo}{ended}: {least.share:.0%} were in time, "
            f"where {self.goal:.0%} must be; allow more, or take a quicker server"
        )

    @property
    def faults(self) -> list[str]:
        """What a server that is measured may not do."""
        sent = sum(sum(one.outcomes.values()) for one in self.made)
        errors = [words for one in self.made for words in one.errors]
        cached = sum(one.cached for one in self.made)
        found = []
        if errors:
            found.append(
                f"at {self.slo} the server failed at {len(errors)} of {sent} requests ({errors[0]}): see its log"
            )
        if cached:
            found.append(
                f"at {self.slo} {cached} of {sent} answers came from the server's response cache, which computes "
                "nothing: start it without"
            )
        return found

    def measure(self) -> Measure:
        search = self.search
        value, (low, high) = (search.value, search.interval) if search and self.made else (0.0, (0.0, None))
        name = f"goodput at {self.slo}"
        return Measure(name, value, "requests/s", "higher", low=low if high is not None else None, high=high)

    def plot(self) -> Plot:
        standings = self.search.standings() if self.search else []
        lines: dict[str, list[tuple[float, float]]] = {
            "in time": [(one.rate, one.share) for one in standings],
            "low": [(one.rate, one.low) for one in standings],
            "high": [(one.rate, one.high) for one in standings],
            "needed": [(one.rate, self.goal) for one in standings],
        }
        return Plot(f"share in time at {self.slo}", "curve", "requests/s", "share of the requests", lines)

    def figures(self) -> dict[str, Any]:
        found = self.measure()
        return {
            "rate": found.value,
            "low": found.low,
            "high": found.high,
            "complete": bool(self.search and self.search.complete),
            "trials": [
                {**asdict(one.trial), "attainment": one.trial.in_time / one.trial.counted, **_besides(one)}
                for one in self.made
            ],
        }


def _besides(made: Attempted) -> dict[str, Any]:
    low, high = made.trial.interval
    return {
        "low": low,
        "high": high,
        "outcomes": made.outcomes,
        "late_sending_ms": round(1e3 * made.late_sending, 3),
        "seconds": round(made.seconds, 3),
        "realised_rate": round(made.realised, 4),
        "cached": made.cached,
    }


class Server:
    """A live server, to be asked from one event loop.

    Args:
        loop: that requests are sent in.
        connections: to the server.

    Attributes:
        limit: seconds without an answer that count as none.
    """

    def __init__(self, loop: asyncio.Runner, connections: Connections, limit: float) -> None:
        self._loop = loop
        self._connections = connections
        self.limit = limit

    def run(self, work: Coroutine[Any, Any, Item]) -> Item:
        return self._loop.run(work)

    async def send(self, asked: Asked, intended: float) -> Outcome:
        return await ask(self._connections, asked, intended, self.limit)

    async def peak(self, mix: Mix, concurrency: int) -> float:
        """Requests a second when so many are always open.

        Raises:
            ServerError: none was answered with images.
        """
        outcomes = await loops.closed_loop(mix.requests(ROUNDS * concurrency), concurrency, self.send)
        served = [outcome for outcome in outcomes if outcome.status == "ok"]
        if not served:
            first = outcomes[0]
            raise ServerError(f"the server answers none of {concurrency} requests at a time: {first.message}")
        return len(served) / tally.span(outcomes)


def live(options: argparse.Namespace) -> dict[str, Any]:
    """Goodput of a server at each limit.

    Raises:
        ServerError: options that make no load, limits that no load meets, or a server that is not there.
    """
    _check(options)
    mix, workload = mix_of(options, "goodput")
    # An earlier run may have left its answers in the server's cache.
    mix = replace(mix, salt=secrets.randbelow(SEEDS))
    slos, variation = slos_of(options), variation_of(options, workload)
    with server_of(options) as address, asyncio.Runner() as loop:
        connections = loop.run(_connected(address))
        try:
            told_of = loop.run(identity(connections[0]))
            found = _measured(Server(loop, connections, options.limit), mix, variation, slos, options)
            return {**found, "environment": {"server": told_of} if told_of else {}}
        finally:
            loop.run(connections.__aexit__())


async def _connected(address: Address) -> Connections:
    return Connections(address.grpc, http_url=address.http)


def _measured(
    server: Server, mix: Mix, variation: float, slos: Sequence[Slo], options: argparse.Namespace
) -> dict[str, Any]:
    alone = server.run(measure_alone(server.send, mix, options.repeats))
    for slo in slos:
        slo.check(alone.expected, alone.share, options.attainment)
    peak = server.run(server.peak(mix, options.max_rows))
    found, failures, near = [], [], BEGIN * peak
    for slo in slos:
        reached = Reached(slo, options.attainment)
        found.append(reached)
        terms = terms_of(slo, mix, alone, variation, options)
        # What may still be in time is waited for.
        server.limit = max(options.limit, terms.longest)
        try:
            _search(server, reached, terms, ABOVE * peak, near, options)
        except ServerError as error:
            failures.append(str(error))
            break
        except KeyboardInterrupt:
            failures.append("interrupted")
            break
        near = (reached.search.value if reached.search else 0.0) or near
    failures = failures or [failure for reached in found if (failure := reached.failure)]
    failures += [fault for reached in found for fault in reached.faults]
    complete = len(found) == len(slos) and all(reached.search and reached.search.complete for reached in found)
    return {
        "partial": not complete or bool(failures),
        "failures": failures,
        "goodput": {str(reached.slo): reached.figures() for reached in found},
        "alone_ms": {_named(kind): round(1e3 * seconds, 3) for kind, seconds in alone.measured.items()},
        "overheads": alone.overheads(),
        "closed_loop_requests_per_second": peak,
        "settings": {"mix": settings(mix), "cv": variation, "attainment": options.attainment, "confidence": CONFIDENCE}
        | {"interval": "approximate"}
        | {name: getattr(options, name) for name in ("requests", "seeds", "apart", "max_rows", "fake")},
        **told([reached.measure() for reached in found], [reached.plot() for reached in found if reached.made]),
    }


def _search(
    server: Server, reached: Reached, terms: Terms, highest: float, near: float, options: argparse.Namespace
) -> None:
    """Fill `reached`, which keeps what there is when the server goes away."""
    end = time.monotonic() + options.seconds

    def try_at(rate: float, seed: int) -> Trial:
        made = server.run(attempt(server.send, terms, rate, seed))
        reached.made.append(made)
        return made.trial

    places = math.ceil(-math.log(DOWN, 1 + options.apart))
    search = Search(
        try_at, terms.share, highest, 1 + options.apart, places, options.seeds, lambda: time.monotonic() > end
    )
    reached.search = search
    search.run(near)


def terms_of(slo: Slo, mix: Mix, alone: Alone, variation: float, options: argparse.Namespace) -> Terms:
    """Of the trials at a limit.

    At a rate that is too high by `apart`, a request comes to wait as long as it may after so many times that long. A
    trial lasts for as many times the slowest request as tell how much their fates differ, too.
    """
    expected = alone.expected
    slack = sum(alone.share[kind] * max(0.0, slo.limit(seconds) - seconds) for kind, seconds in expected.items())
    longest = max(slo.limit(seconds) for seconds in expected.values())

    def limit(kind: Kind) -> float:
        return slo.limit(alone.seconds(kind))

    least = max(slack / options.apart, LEAST_PARTS * PART * longest)
    return Terms(mix, limit, longest, options.attainment, least, options.requests, variation)


def _named(kind: Kind) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(kind._fields, kind, strict=True))
