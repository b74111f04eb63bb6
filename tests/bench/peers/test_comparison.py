"""Which peers are timed, and what is said of them, with contestants that only paint."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from bench.peers.comparison import LEAST_PSNR, Found, Plan, check, compare_all
from bench.peers.contestant import Contestant, Drawn, Load
from bench.peers.order import MissingPeerError, Order
from bench.peers.process import PeerError
from bench.peers.told import Compared, figures
from bench.traffic.asking import Outcome
from server.errors import ServerError

SINGLE = Order(("a",), (1,), steps=2, guidance=2.0, height=2, width=1)
BATCH = Order(("a", "b"), (1, 2), steps=2, guidance=2.0, height=2, width=1)
EXPECTED = np.full((2, 2, 1, 3), 100, np.uint8)


class Painter:
    """Paints in one grey, in seconds that grow with the pictures; answers a load one request after the other."""

    def __init__(self, name: str, grey: int, seconds: float, status: str = "ok") -> None:
        self.name = name
        self._grey, self._seconds, self._status = grey, seconds, status
        self.drawn = 0

    def lives(self) -> bool:
        return self._status == "ok"

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


def beside(ours: Painter, *peers: Painter, plan: Plan, compared: Compared | None = None) -> Found:
    """What is found of peers, all of which come when they are called."""
    found, there = Found(), {peer.name: peer for peer in peers}

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[tuple[Contestant, Compared]]:
        if name not in there:
            raise MissingPeerError(f"{name} is not here")
        yield there[name], compared or Compared("fp32", 0.0)

    compare_all(found, ours, [*there, "nobody"], opened, plan, EXPECTED)
    return found


def test_a_peer_that_draws_the_same_is_timed_in_every_setting() -> None:
    found = beside(Painter("ours", 100, 1.0), Painter("peer", 101, 2.0), plan=plan())
    assert (found.partial, found.failures, found.skipped) == (False, [], {"nobody": "nobody is not here"})
    compared = found.peers["peer"]
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
    rounds = beside(Painter("ours", 100, 1.0), Painter("peer", 100, 3.0), plan=at_rate).peers["peer"].rounds["mixed"]
    # Of four, answered one after the other.
    assert (rounds.ours, rounds.theirs) == ((2.5,) * 3, (7.5,) * 3)


@pytest.mark.parametrize(("even", "drawn"), [(False, 2), (True, 2 + 6)])
def test_a_peer_that_draws_something_else_has_a_number_and_no_ratio(even: bool, drawn: int) -> None:
    peer, compared = Painter("peer", 200, 1.0), Compared("bf16", 0.0)
    beside(Painter("ours", 100, 1.0), peer, plan=plan(even_if_different=even), compared=compared)
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
    beside(ours, *peers, plan=plan())
    # Each draws the first picture and batch to be checked, and then in every round what ours draws.
    assert sorted(ours.asked) == sorted(peers[0].asked[2:] + peers[1].asked[2:])
    single = [prompts for prompts in ours.asked if len(prompts) == 1]
    assert len(set(single)) == len(single) == 6


def test_a_load_that_fails_is_no_measurement_and_the_settings_before_it_are_kept() -> None:
    peers = Painter("peer", 100, 1.0, "error"), Painter("other", 100, 1.0)
    found = beside(Painter("ours", 100, 1.0), *peers, plan=plan())
    assert (found.partial, found.failures) == (True, ["peer: peer failed 4 of 4 requests of the load: no"])
    assert list(found.peers["peer"].rounds) == ["single", "batch"]
    assert list(found.peers["other"].rounds) == ["single", "batch", "mixed"]
    assert json.dumps(figures(found.peers["other"], found.peers))


def test_when_ours_has_gone_no_more_peers_are_loaded() -> None:
    peers = Painter("peer", 100, 1.0), Painter("other", 100, 1.0)
    found = beside(Painter("ours", 100, 1.0, "error"), *peers, plan=plan())
    assert (found.partial, list(found.peers), found.skipped) == (True, ["peer"], {})
    assert peers[1].drawn == 0
    assert found.failures[1] == "our server has gone, so the other peers were left out"


class Ending(Painter):
    """Draws so many orders."""

    def __init__(self, name: str, orders: int, ending: BaseException) -> None:
        super().__init__(name, 100, 1.0)
        self._orders, self._ending = orders, ending

    def draw(self, order: Order, *, keep: bool = False) -> Drawn:
        if self.drawn == self._orders:
            raise self._ending
        return super().draw(order, keep=keep)


@pytest.mark.parametrize(("orders", "rounds"), [(1, None), (2, {}), (4, {"single": 2}), (6, {"single": 3, "batch": 1})])
@pytest.mark.parametrize("ending", [KeyboardInterrupt(), PeerError("its process ended"), ServerError("it is gone")])
def test_rounds_that_were_whole_are_kept(orders: int, rounds: dict[str, int] | None, ending: BaseException) -> None:
    """Of a peer that draws no more; one whose pictures could not all be checked is left out."""
    other = Painter("other", 100, 1.0)
    found = beside(Painter("ours", 100, 1.0), Ending("peer", orders, ending), other, plan=plan())
    peer = found.peers.get("peer")
    assert (peer and {name: len(kept.ours) for name, kept in peer.rounds.items()}) == rounds
    interrupted = isinstance(ending, KeyboardInterrupt)
    assert (found.partial, found.failures) == (True, ["interrupted" if interrupted else f"peer: {ending}"])
    assert ("other" in found.peers) == (not interrupted)


def test_every_picture_of_a_batch_is_compared_with_its_own_reference() -> None:
    class SecondIsAnother(Painter):
        """Draws the first picture as it should be."""

        def draw(self, order: Order, *, keep: bool = False) -> Drawn:
            drawn = super().draw(order, keep=keep)
            assert drawn.pixels is not None
            drawn.pixels[1:] = 30
            return drawn

    expected = EXPECTED.copy()
    expected[1] = 120
    wrong, right = Compared("fp32", 0.0), Compared("fp32", 0.0)
    check(SecondIsAnother("peer", 100, 1.0), wrong, plan(), expected)
    assert not wrong.same
    assert wrong.psnr == pytest.approx(20 * np.log10(255 / 90))
    expected[1] = 30
    check(SecondIsAnother("peer", 100, 1.0), right, plan(), expected)
    assert right.same


def test_a_batch_is_drawn_to_be_checked_only_if_it_is_timed() -> None:
    ours = Painter("ours", 100, 1.0)
    check(ours, Compared("fp32", 0.0), replace(plan(), settings=("single", "mixed")), EXPECTED)
    assert ours.drawn == 1
