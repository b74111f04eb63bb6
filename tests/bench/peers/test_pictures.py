"""Which peers are timed, and what is said of them, with contestants that only paint."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.peers import pictures, program
from bench.peers.contestant import Drawn, Load, fields_of
from bench.peers.order import Order
from bench.peers.pictures import LEAST_PSNR, Plan, check, compare, plan_of
from bench.peers.told import Compared, figures
from bench.traffic.asking import Outcome
from engines.component import PipelineSpec
from engines.errors import EngineError

SINGLE = Order(("a",), (1,), steps=2, guidance=2.0, height=2, width=1)
BATCH = Order(("a", "b"), (1, 2), steps=2, guidance=2.0, height=2, width=1)
EXPECTED = np.full((2, 1, 3), 100, np.uint8)


class Painter:
    """Paints in one grey, in seconds that grow with the pictures; answers a load one request after the other."""

    def __init__(self, name: str, grey: int, seconds: float, status: str = "ok") -> None:
        self.name = name
        self._grey, self._seconds, self._status = grey, seconds, status
        self.drawn = 0

    def draw(self, order: Order, *, keep: bool = False) -> Drawn:
        self.drawn += 1
        shape = len(order.prompts), order.height, order.width, 3
        return Drawn(self._seconds * len(order.prompts), np.full(shape, self._grey, np.uint8) if keep else None)

    def serve(self, load: Load) -> list[Outcome]:
        ends = [self._seconds * (i + 1) for i in range(len(load.orders))]
        return [
            Outcome(asked, self._status, 0.0, 0.0, end, "" if self._status == "ok" else "no")  # type: ignore[arg-type]
            for asked, end in zip(load.requests, ends, strict=True)
        ]


def plan(*, even_if_different: bool = False) -> Plan:
    def load(number: int) -> Load:
        return Load([replace(SINGLE, steps=2 + i % 2) for i in range(4)], concurrency=2)

    return Plan(("single", "batch", "mixed"), {"single": SINGLE, "batch": BATCH}, load, 3, even_if_different)


def test_a_peer_that_draws_the_same_is_timed_in_every_setting() -> None:
    ours, peer = Painter("ours", 100, 1.0), Painter("peer", 101, 2.0)
    compared = Compared("fp32", 0.0)
    compare(ours, peer, compared, plan(), EXPECTED)
    assert compared.same
    assert compared.psnr == pytest.approx(48.13, abs=0.01)
    assert {name: rounds.ratios for name, rounds in compared.rounds.items()} == dict.fromkeys(
        ("single", "batch", "mixed"), [2.0] * 3
    )
    assert compared.first_seconds == {"single": 2.0, "batch": 4.0}
    result = figures(compared, {"peer": compared})
    assert json.dumps(result)
    measures = result["measures"]
    assert measures["ratio peer mixed"]["samples"] == [2.0] * 3
    assert measures["latency ratio peer mixed 2 steps"]["value"] == 2.0
    assert result["peers"]["peer"]["settings"]["batch"]["ratio"] == 2.0
    assert result["peers"]["peer"]["latency_ms_by_steps"]["ours"]["3"]["count"] == 6
    titles = [plot["title"] for plot in result["plots"]]
    assert titles == [
        *("Time over ours, one picture", "Time over ours, pictures wanted together", "Time over ours, mixed load"),
        "Mixed load: ours and peer",
    ]
    assert result["plots"][-1]["series"]["ours"][-1] == [4.0, 1.0]


def test_a_load_that_comes_at_a_rate_is_told_by_its_latencies() -> None:
    at_rate = replace(plan(), settings=("mixed",), load=lambda number: replace(plan().load(number), rate=1.0))
    compared = Compared("fp32", 0.0)
    compare(Painter("ours", 100, 1.0), Painter("peer", 100, 3.0), compared, at_rate, EXPECTED)
    # Of four, answered one after the other.
    assert compared.rounds["mixed"].ours == [2.5] * 3
    assert compared.rounds["mixed"].theirs == [7.5] * 3


@pytest.mark.parametrize(("even", "drawn"), [(False, 2), (True, 2 + 6)])
def test_a_peer_that_draws_something_else_has_a_number_and_no_ratio(even: bool, drawn: int) -> None:
    peer, compared = Painter("peer", 200, 1.0), Compared("bf16", 0.0)
    compare(Painter("ours", 100, 1.0), peer, compared, plan(even_if_different=even), EXPECTED)
    assert not compared.same
    assert 0 < compared.psnr < LEAST_PSNR["bf16"]
    assert peer.drawn == drawn
    assert bool(compared.rounds) == even
    found = compared.figures
    assert (found["same_picture"], found["psnr_db"], "settings" in found) == (False, 8.1, even)


def test_no_round_has_the_prompts_of_another() -> None:
    class Listener(Painter):
        """Keeps what was asked."""

        asked: list[tuple[str, ...]]

        def draw(self, order: Order, *, keep: bool = False) -> Drawn:
            self.asked.append(order.prompts)
            return super().draw(order, keep=keep)

        def serve(self, load: Load) -> list[Outcome]:
            self.asked.append(tuple(order.prompts[0] for order in load.orders))
            return super().serve(load)

    ours, peers = Listener("ours", 100, 1.0), [Listener("one", 100, 1.0), Listener("other", 100, 1.0)]
    ours.asked = []
    for peer in peers:
        peer.asked = []
        compare(ours, peer, Compared("fp32", 0.0), plan(), EXPECTED)
    # Each draws the first picture and batch to be checked, and then in every round what ours draws.
    assert sorted(ours.asked) == sorted(peers[0].asked[2:] + peers[1].asked[2:])
    single = [prompts for prompts in ours.asked if len(prompts) == 1]
    assert len(set(single)) == len(single) == 6


def test_a_load_that_fails_is_no_measurement() -> None:
    with pytest.raises(EngineError, match="peer failed 4 of 4 requests of the load: no"):
        compare(Painter("ours", 100, 1.0), Painter("peer", 100, 1.0, "error"), Compared("fp32", 0.0), plan(), EXPECTED)


def test_a_batch_is_drawn_to_be_checked_only_if_it_is_timed() -> None:
    ours = Painter("ours", 100, 1.0)
    check(ours, Compared("fp32", 0.0), replace(plan(), settings=("single", "mixed")), EXPECTED)
    assert ours.drawn == 1


@pytest.fixture
def spec(fake_export: Path) -> PipelineSpec:
    return PipelineSpec.read(fake_export)


@pytest.fixture
def options() -> Callable[..., argparse.Namespace]:
    def parsed(*given: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        program.add_options(parser)
        return parser.parse_args(given)

    return parsed


def test_the_batch_begins_with_the_single_picture(
    options: Callable[..., argparse.Namespace], spec: PipelineSpec
) -> None:
    found = plan_of(options("--batch", "3", "--size", "128", "--setting", "mixed", "--setting", "single"), spec)
    single, batch = found.orders["single"], found.orders["batch"]
    assert batch.singles()[0] == single
    assert (single.height, len(batch.prompts), found.settings) == (128, 3, ["single", "mixed"])
    assert found.load(0).orders != found.load(1).orders
    assert len(fields_of(batch)) == 3


@pytest.mark.parametrize(
    "given",
    [
        *(("--steps", "0"), ("--repeats", "0"), ("--batch", "-1"), ("--guidance", "1"), ("--mix", "4,0")),
        *(("--rate", "-1"), ("--size", "77"), ("--concurrency", "0")),
    ],
)
def test_bad_numbers_are_told(
    options: Callable[..., argparse.Namespace], spec: PipelineSpec, given: tuple[str, ...]
) -> None:
    with pytest.raises(EngineError, match=given[0]):
        plan_of(options(*given), spec)


def test_a_peer_of_the_other_kind_is_told(options: Callable[..., argparse.Namespace]) -> None:
    with pytest.raises(EngineError, match="--peer torch_bf16 is none of --what pictures, which has diffusers_fp32"):
        program.run(options("--peer", "torch_bf16"))
    with pytest.raises(SystemExit):
        options("--peer-python", "nobody=/bin/python")
    assert options("--peer-python", "openvino_genai=/x=y").peer_python == [("openvino_genai", "/x=y")]
    assert pictures.PEERS[-2:] == ("triton_serial", "triton_static")
