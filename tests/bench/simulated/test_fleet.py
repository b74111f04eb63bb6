"""Several servers in one virtual time: what one does alone, how requests are shared out, and what all of them take."""

from __future__ import annotations

import math
import statistics

import pytest

from bench.simulated.accelerator import DeviceCurve, MeasuredCurve
from bench.simulated.batchers import BATCHERS
from bench.simulated.fleet import Balancer, Costs, Served, serve
from bench.simulated.load import Load, calls_and_rows
from bench.traffic.mix import Mix

CURVE = DeviceCurve(fixed_seconds=1.0, row_seconds=0.25)
STEPS = 1
ALONE = CURVE.alone(STEPS)
COSTS = Costs(CURVE, 8)


def even(count: int, steps: int = STEPS) -> Load:
    """One request after the other, as far apart."""
    return Load(tuple(float(i) for i in range(count)), (steps,) * count, ("euler",) * count)


def poisson(count: int, seed: int = 0) -> Load:
    return Load.of(Mix(steps=(STEPS,)), count, 1.0, seed)


@pytest.mark.parametrize("batcher", BATCHERS)
@pytest.mark.parametrize("balancer", ["random", "round_robin", "least_outstanding"])
def test_a_request_alone_takes_its_time_alone(batcher: str, balancer: Balancer) -> None:
    costs = Costs(CURVE, 8, encode_seconds=0.5, decode_seconds=0.25, request_seconds=0.125)
    served = serve(batcher, costs, even(20), 1 / 100, 2, balancer)
    assert len(served.latencies) == 18
    assert served.latencies == pytest.approx([ALONE + 0.875] * 18)
    assert served.alone == pytest.approx(served.latencies)
    assert served.rows_per_call == 2
    # So many seconds of 2 servers in 1900, until the last request comes and its prompt is encoded.
    assert served.busy == pytest.approx((19 * (ALONE + 0.75) + 0.5) / (2 * 1900), rel=0.01)


def test_unguided_requests_take_one_row() -> None:
    load = Load.of(Mix(steps=(STEPS,), guidance=(1.0,)), 20, 1.0, 0)
    served = serve("in_flight", COSTS, load, 1 / 1000, 1, "random")
    assert served.rows_per_call == pytest.approx(1, abs=0.2)
    assert calls_and_rows(4, "euler", False) == (4, 1)
    assert calls_and_rows(4, "heun", True)[0] > 4


def queueing(served: Served) -> float:
    return statistics.fmean(seconds - alone for seconds, alone in zip(served.latencies, served.alone, strict=True))


def test_one_serial_server_is_a_queue_with_constant_service() -> None:
    """M/D/1 (Pollaczek, Khinchine): the mean wait is r / (2 (1 - r)) services."""
    use = 0.5
    wait = queueing(serve("serial", COSTS, poisson(3000), use / ALONE, 1, "random"))
    assert wait / ALONE == pytest.approx(use / (2 * (1 - use)), rel=0.2)


def test_a_random_split_leaves_every_server_the_same_queue() -> None:
    """Thinned Poisson arrivals are Poisson arrivals, so three servers with three times the load wait as one does."""
    use = 0.5
    wait = queueing(serve("serial", COSTS, poisson(3000), 3 * use / ALONE, 3, "random"))
    assert wait / ALONE == pytest.approx(use / (2 * (1 - use)), rel=0.2)


def test_better_balancers_wait_less() -> None:
    waits = {
        balancer: queueing(serve("serial", COSTS, poisson(600), 3 * 0.8 / ALONE, 3, balancer))
        for balancer in ("random", "round_robin", "least_outstanding")
    }
    # When all take as long, the server whose turn it is has the fewest.
    assert waits["least_outstanding"] <= waits["round_robin"] < waits["random"]


def test_the_least_loaded_server_is_found_while_calls_are_made() -> None:
    """Two requests at once go to two servers, and the third finds one of them idle again."""
    served = serve("serial", COSTS, Load((0.0, 0.1, ALONE + 0.05), (STEPS,) * 3, ("euler",) * 3), 1.0, 2, "random")
    least = serve(
        "serial", COSTS, Load((0.0, 0.1, ALONE + 0.05), (STEPS,) * 3, ("euler",) * 3), 1.0, 2, "least_outstanding"
    )
    assert least.latencies == pytest.approx([ALONE] * 3)
    assert max(served.latencies) >= ALONE


def test_runs_are_the_same_every_time() -> None:
    one, other = (serve("in_flight", COSTS, poisson(100), 2 / ALONE, 2, "random") for _ in range(2))
    assert one == other


def test_work_that_is_not_the_unet_holds_the_device_up() -> None:
    rate = 0.9 / ALONE
    plain = serve("serial", COSTS, poisson(200), rate, 1, "random")
    costly = serve("serial", Costs(CURVE, 8, encode_seconds=0.2, decode_seconds=0.4), poisson(200), rate, 1, "random")
    assert queueing(costly) > 1.5 * queueing(plain)


def test_a_measured_curve_is_a_line_between_its_points() -> None:
    curve = MeasuredCurve([(2, 0.1), (10, 0.3)], besides=0.01)
    assert curve.seconds(2) == pytest.approx(0.11)
    assert curve.seconds(6) == pytest.approx(0.21)
    assert curve.seconds(20) == pytest.approx(0.61)
    assert curve.seconds(1) == pytest.approx(0.11)
    assert curve.peak(10, 10) == pytest.approx(1 / (10 * 2 * 0.31 / 10))
    assert math.isclose(curve.alone(10), 1.1)
