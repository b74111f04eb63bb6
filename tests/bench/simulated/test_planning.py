"""The fewest servers that are enough, and that more load needs more of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.simulated import planning
from bench.simulated.accelerator import DeviceCurve
from bench.simulated.fleet import Costs
from bench.simulated.planning import FURTHER, Case, Planner, fewest, one_server, tails
from bench.traffic.bisection import Standing
from bench.traffic.mix import Mix
from bench.traffic.slo import Slo
from bench.traffic.tasks import Task
from server.errors import ServerError

CURVE = DeviceCurve(fixed_seconds=1.0, row_seconds=0.25)
STEPS = 1
ALONE = CURVE.alone(STEPS)
CASE = Case(Costs(CURVE, 8), Mix(steps=(STEPS,)), 1.0, "round_robin", 0.95, requests=50, seeds=1, most=40)
SLO = Slo(multiple=3.0)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LEAST_REQUESTS", 150)


@pytest.mark.parametrize("border", range(1, 41))
@pytest.mark.parametrize("start", [1, 3, 20])
def test_the_fewest_that_are_enough_are_found(border: int, start: int) -> None:
    tried: list[int] = []

    def enough(number: int) -> bool:
        tried.append(number)
        return number >= border

    assert fewest(enough, start, 40) == max(start, border)
    assert len(tried) == len(set(tried))
    assert fewest(lambda number: False, start, 40) is None


def test_work_is_that_of_full_calls() -> None:
    assert CASE.work == pytest.approx(STEPS * 2 * CURVE.seconds(8) / 8)
    costly = replace(CASE, costs=Costs(CURVE, 8, encode_seconds=0.5, decode_seconds=1.0))
    assert costly.work == pytest.approx(CASE.work + 1.5)
    assert list(CASE.alone.values()) == [ALONE]


def test_more_load_needs_more_servers_and_serial_ones_more_still() -> None:
    planned = {
        (batcher, rate): Planner(CASE, batcher, rate).plan(SLO)
        for batcher in ("in_flight", "serial")
        for rate in (2.0, 6.0)
    }
    ours, theirs = planned["in_flight", 6.0], planned["serial", 6.0]
    assert planned["in_flight", 2.0].servers < ours.servers < theirs.servers
    assert ours.share >= 0.95
    assert ours.share_low <= ours.share <= ours.share_high
    assert ours.low is None or ours.low <= ours.servers
    assert ours.high is None or ours.high >= ours.servers
    assert ours.used == pytest.approx(6.0 * CASE.work / ours.servers)
    assert ALONE <= ours.seconds["p50"] <= ours.seconds["p99"]


def test_one_server_fewer_is_not_enough() -> None:
    planner = Planner(CASE, "serial", 3.0)
    servers = planner.plan(SLO).servers
    assert planner.standing(servers - 1, SLO).share < 0.95 <= planner.standing(servers, SLO).share


def test_too_few_servers_are_told() -> None:
    with pytest.raises(ServerError, match=r"3 servers are not enough for 9 requests/s at 3x .* raise --most-servers"):
        Planner(replace(CASE, most=3), "serial", 9.0).plan(SLO)


def test_fewer_that_may_be_enough_are_looked_for_only_so_far() -> None:
    class Doubtful(Planner):
        def standing(self, servers: int, slo: Slo) -> Standing:
            return Standing(3.0, share=0.9, low=0.8, high=1.0, counted=20)

    planner = Doubtful(CASE, "serial", 3.0)
    assert [planner._low(servers, SLO) for servers in (1, FURTHER + 1, FURTHER + 2)] == [1, 1, None]


def test_one_serial_server_serves_what_its_queue_allows() -> None:
    """M/D/1: a wait of at most two services has probability 95 % at a use of 0.495."""
    found = one_server(replace(CASE, requests=1500), "serial", SLO)
    assert found.rate * ALONE == pytest.approx(0.495, abs=0.06)
    assert found.high is not None
    assert found.low <= found.rate <= found.high


def test_latencies_grow_with_load() -> None:
    points = tails(CASE, "in_flight", 2, (0.1, 0.9))
    assert points[0][0] == pytest.approx(0.1 * 2 / CASE.work)
    assert points[0][1] < points[1][1]


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        (Mix(sizes=(128, 192)), "several sizes"),
        (Mix(images=(1, 2)), "several images a request"),
        (Mix(tasks=(Task("img2img"),)), r"tasks other than txt2img \(img2img\)"),
    ],
)
def test_what_is_not_simulated_is_told(mix: Mix, said: str) -> None:
    with pytest.raises(ServerError, match=said):
        _ = replace(CASE, mix=mix).kinds
