"""Kinds that are measured, and those between them."""

from __future__ import annotations

import asyncio

import pytest

from bench.traffic.alone import Alone, examples, measure_alone, worth_measuring
from bench.traffic.asking import Outcome, Status
from bench.traffic.mix import Asked, Kind, Mix
from bench.traffic.spread import Between
from server.errors import ServerError


def kind(steps: int, sampler: str = "euler") -> Kind:
    return Kind(steps, sampler, 7.5, 0, 0, 1)


class Server:
    """Takes 10 ms a request and 2 ms a step, without taking them."""

    def __init__(self, status: Status = "ok") -> None:
        self.asked: list[Asked] = []
        self._status = status

    async def send(self, asked: Asked, intended: float) -> Outcome:
        self.asked.append(asked)
        seconds = 0.01 + 0.002 * asked.kind.steps
        return Outcome(asked, self._status, intended, intended, intended + seconds, "no room")


def test_all_kinds_of_a_mix_are_found() -> None:
    found, share = examples(Mix(steps=(4, 20), samplers=("euler", "ddim")))
    assert set(found) == set(share) == {kind(steps, name) for steps in (4, 20) for name in ("euler", "ddim")}
    assert sum(share.values()) == pytest.approx(1)


def test_scales_of_a_range_are_two_kinds_at_most() -> None:
    found, share = examples(Mix(guidance=Between(0.5, 1.5)))
    assert {one.guidance for one in found} == {1.0, 1.5}
    assert sum(share.values()) == pytest.approx(1)
    assert all((float(str(asked.fields["guidance_scale"])) > 1) == (one.guidance > 1) for one, asked in found.items())


def test_of_many_steps_a_few_are_measured() -> None:
    assert worth_measuring([kind(steps) for steps in range(10, 51)]) == [kind(10), kind(30), kind(50)]
    assert worth_measuring([kind(8), kind(4), kind(4, "ddim")]) == [kind(4, "ddim"), kind(4), kind(8)]


def test_steps_between_are_on_a_line() -> None:
    server = Server()
    alone = asyncio.run(measure_alone(server.send, Mix(steps=Between(10, 50)), repeats=2))
    assert len(alone.measured) == 3
    assert len(server.asked) == 3 * 3
    assert len({asked.fields["request_id"] for asked in server.asked}) == 9
    assert alone.seconds(kind(17)) == pytest.approx(0.01 + 0.034)
    assert alone.expected[kind(43)] == pytest.approx(0.01 + 0.086)
    assert [len(seconds) for seconds in alone.repetitions.values()] == [2, 2, 2]
    overheads = alone.overheads()
    assert overheads is not None
    assert (overheads["request_ms"], overheads["step_ms"]) == pytest.approx((10, 2))


def test_kinds_that_were_not_measured_count_as_the_longest() -> None:
    alone = Alone({kind(20): 0.5, kind(50): 1.1}, {kind(20): 1.0})
    assert alone.seconds(kind(20, "ddim")) == 1.1
    assert Alone({kind(20): 0.5}, {}).seconds(kind(40)) == 1.0
    assert Alone({kind(20): 0.5}, {}).overheads() is None


def test_a_server_that_does_not_answer_is_told() -> None:
    with pytest.raises(ServerError, match="a request alone on the server ended as refused: no room"):
        asyncio.run(measure_alone(Server("refused").send, Mix(), repeats=1))
