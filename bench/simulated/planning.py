"""How many servers a load needs, and how much load one server takes, by simulation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from bench.simulated.fleet import Balancer, Costs, Served, serve
from bench.simulated.load import Load, calls_and_rows
from bench.traffic.alone import examples
from bench.traffic.bisection import Search, Standing, Trial
from bench.traffic.latencies import percentile
from bench.traffic.mix import Kind, Mix
from bench.traffic.slo import Slo
from server.errors import ServerError

# Requests of a run, whatever the number of servers.
LEAST_REQUESTS = 1500
# Servers more and fewer that are tried to learn where the number may lie.
FURTHER = 3
# Of the search for what one server takes: rates, and by how much they differ.
PLACES, APART = 90, 1.03


@dataclass(frozen=True)
class Case:
    """What is planned for.

    Attributes:
        variation: deviation of the times between arrivals over their mean.
        attainment: share of the requests that must be in time.
        requests: of a run, for each server.
        seeds: arrival sequences.
        most: servers.
    """

    costs: Costs
    mix: Mix
    variation: float
    balancer: Balancer
    attainment: float
    requests: int
    seeds: int
    most: int

    @cached_property
    def kinds(self) -> Mapping[Kind, float]:
        """Share of the requests that are of each kind.

        Raises:
            ServerError: one has more than one picture, other sizes than the rest, or another task.
        """
        share = examples(self.mix)[1]
        if len({(kind.height, kind.width) for kind in share}) > 1 or any(k.images > 1 for k in share):
            raise ServerError(
                "the workload has several sizes, or several images a request: plan for one size and one image at a "
                "time, each with its curve"
            )
        if tasks := sorted({kind.task for kind in share} - {"txt2img"}):
            raise ServerError(f"the workload has tasks other than txt2img ({', '.join(tasks)}): plan without them")
        return share

    @cached_property
    def alone(self) -> Mapping[Kind, float]:
        """Seconds of each kind of request that has a server to itself."""
        return {kind: self.costs.alone(*_shape(kind)) for kind in self.kinds}

    @cached_property
    def work(self) -> float:
        """Mean seconds of the device that a request needs when all its calls are as full as is best."""
        curve = self.costs.curve
        row = min(curve.seconds(rows) / rows for rows in range(1, self.costs.max_rows + 1))
        calls = sum(share * calls * rows for kind, share in self.kinds.items() for calls, rows in [_shape(kind)])
        return calls * row + self.costs.encode_seconds + self.costs.decode_seconds

    def run(self, batcher: str, rate: float, servers: int, seed: int, count: int) -> Served:
        load = Load.of(self.mix, count, self.variation, seed)
        return serve(batcher, self.costs, load, rate, servers, self.balancer)

    def trial(self, served: Served, slo: Slo, rate: float, seed: int) -> Trial:
        in_time = [s <= slo.limit(a) for s, a in zip(served.latencies, served.alone, strict=True)]
        return Trial.of(rate, seed, in_time)


def _shape(kind: Kind) -> tuple[int, int]:
    return calls_and_rows(kind.steps, kind.sampler, kind.guidance > 1)


@dataclass(frozen=True, slots=True)
class Planned:
    """How many servers a load needs.

    Attributes:
        servers: the fewest at which the share of requests in time, over all arrival sequences, is enough.
        low, high: the fewest at which it may be, and at which it surely is (95 %); None where that was not found.
        share, share_low, share_high: in time, at `servers`.
        used: what the load takes, of what the servers could do if all calls were as full as is best.
        busy: share of the time in which their devices compute, however full the calls are.
        seconds: latencies by percentile.
    """

    rate: float
    slo: str
    batcher: str
    servers: int
    low: int | None
    high: int | None
    share: float
    share_low: float
    share_high: float
    used: float
    busy: float
    rows_per_call: float
    seconds: Mapping[str, float]


@dataclass
class Planner:
    """Finds the number of servers for one load and one way of batching; runs serve all limits."""

    case: Case
    batcher: str
    rate: float
    runs: dict[int, list[Served]] = field(default_factory=dict)

    def plan(self, slo: Slo) -> Planned:
        """For one limit.

        Raises:
            ServerError: more servers than may be are not enough.
        """
        servers = fewest(lambda n: self.standing(n, slo).share >= self.case.attainment, self.least, self.case.most)
        if servers is None:
            share = self.standing(self.case.most, slo).share
            raise ServerError(
                f"{self.case.most} servers are not enough for {self.rate:g} requests/s at {slo} ({self.batcher}, "
                f"{share:.1%} in time): raise --most-servers, or allow more"
            )
        standing, runs = self.standing(servers, slo), self.served(servers)
        latencies = [seconds for run in runs for seconds in run.latencies]
        return Planned(
            rate=self.rate,
            slo=str(slo),
            batcher=self.batcher,
            servers=servers,
            low=self._low(servers, slo),
            high=self._high(servers, slo),
            share=standing.share,
            share_low=standing.low,
            share_high=standing.high,
            used=self.rate * self.case.work / servers,
            busy=statistics.fmean(run.busy for run in runs),
            rows_per_call=statistics.fmean(run.rows_per_call for run in runs),
            seconds={f"p{100 * part:g}": percentile(latencies, part) for part in (0.5, 0.9, 0.95, 0.99)},
        )

    @property
    def least(self) -> int:
        """Servers that could do the work if their calls were always full."""
        return min(self.case.most, max(1, int(self.rate * self.case.work)))

    def served(self, servers: int) -> list[Served]:
        if servers not in self.runs:
            count = max(LEAST_REQUESTS, self.case.requests * self.least)
            self.runs[servers] = [
                self.case.run(self.batcher, self.rate, servers, seed, count) for seed in range(self.case.seeds)
            ]
        return self.runs[servers]

    def standing(self, servers: int, slo: Slo) -> Standing:
        runs = self.served(servers)
        return Standing.of([self.case.trial(run, slo, self.rate, seed) for seed, run in enumerate(runs)])

    def _low(self, servers: int, slo: Slo) -> int | None:
        """The fewest that may be enough."""
        for number in range(servers - 1, max(0, servers - 1 - FURTHER), -1):
            if self.standing(number, slo).high < self.case.attainment:
                return number + 1
        return 1 if servers <= FURTHER + 1 else None

    def _high(self, servers: int, slo: Slo) -> int | None:
        """The fewest that surely are."""
        for number in range(servers, min(servers + FURTHER, self.case.most) + 1):
            if self.standing(number, slo).low >= self.case.attainment:
                return number
        return None


def fewest(enough: Callable[[int], bool], start: int, most: int) -> int | None:
    """The lowest number from `start` to `most` that is enough, where all above one that is are too; None for none.

    Strides upwards from `start`, further each time, then bisects.
    """
    low, high, stride = start - 1, start, 1
    while not enough(high):
        if high == most:
            return None
        low, high, stride = high, min(high + stride, most), 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class OneServer:
    """The highest rate that one server serves in time, as `bench goodput` finds it on a live one."""

    slo: str
    batcher: str
    rate: float
    low: float
    high: float | None
    trials: Sequence[Trial]


def one_server(case: Case, batcher: str, slo: Slo) -> OneServer:
    """For one limit and one way of batching."""

    def attempt(rate: float, seed: int) -> Trial:
        # As many seconds as a server has that takes the best rate for `requests`.
        count = max(LEAST_REQUESTS, case.requests)
        return case.trial(case.run(batcher, rate, 1, seed, count), slo, rate, seed)

    search = Search(attempt, case.attainment, 1.1 / case.work, APART, PLACES, case.seeds)
    search.run(0.6 / case.work if batcher != "serial" else 0.6 / _alone(case))
    trials = [trial for _, made in sorted(search.trials.items()) for trial in made]
    return OneServer(str(slo), batcher, search.value, search.low, search.high, trials)


def _alone(case: Case) -> float:
    return sum(share * case.alone[kind] for kind, share in case.kinds.items())


def tails(case: Case, batcher: str, servers: int, parts: Sequence[float]) -> list[tuple[float, float]]:
    """(requests a second, p99 latency in seconds) of so many servers, at parts of the most that they could do."""
    found = []
    for part in parts:
        rate = part * servers / case.work
        run = case.run(batcher, rate, servers, 0, max(LEAST_REQUESTS, case.requests * servers))
        found.append((rate, percentile(run.latencies, 0.99)))
    return found
