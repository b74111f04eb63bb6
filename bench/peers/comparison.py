"""Whether peers draw the same pictures, and how long they take beside ours."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.peers.contestant import Contestant, Load
from bench.peers.order import MissingPeerError, Order
from bench.peers.rounds import Rounds, interleaved
from bench.peers.told import Compared, Setting
from bench.traffic.asking import Outcome
from bench.traffic.tally import span
from engines.component import Precision
from engines.errors import EngineError
from engines.verify import psnr
from server.errors import ServerError

Pictures: TypeAlias = npt.NDArray[np.uint8]
# In dB, of a picture by the same weights and seed. Some peers cut where others round, which alone leaves 53 of an fp32
# picture; what another schedule or another noise leaves is below 20.
LEAST_PSNR: Mapping[Precision, float] = {"fp32": 40.0, "fp16": 30.0, "bf16": 25.0, "int8": 20.0}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is drawn.

    Attributes:
        orders: of the settings `single` and `batch`; the first pictures are the same.
        load: gives that of a round.
    """

    settings: Sequence[Setting]
    orders: Mapping[Setting, Order]
    load: Callable[[int], Load]
    rounds: int
    even_if_different: bool

    @property
    def drawn_once(self) -> list[Setting]:
        """Whose pictures are compared with the reference; the mixed load's are like the single ones."""
        return ["single", "batch"] if "batch" in self.settings else ["single"]

    @property
    def checked(self) -> Order:
        """The pictures that need a reference: the last of `drawn_once`, of which the first picture is all others'."""
        return self.orders[self.drawn_once[-1]]


@dataclass(slots=True)
class Found:
    """What there is to tell, as it comes.

    Attributes:
        peers: those whose pictures were checked, with as many rounds as they came to.
        skipped: why others cannot be here.
        partial: whether something ended before its time; `failures` says what.
    """

    peers: dict[str, Compared] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    partial: bool = False

    def ended(self, why: str) -> None:
        """Before its time."""
        self.partial = True
        self.failures.append(why)


class Ours(Contestant, Protocol):
    """Our server."""

    def lives(self) -> bool:
        """Whether it still answers."""


def compare_all(
    found: Found,
    ours: Ours,
    names: Sequence[str],
    opened: Callable[[str], AbstractContextManager[tuple[Contestant, Compared]]],
    plan: Plan,
    expected: Pictures,
) -> None:
    """Each peer beside ours, until ours is gone or somebody interrupts; what fails is told in `found`."""
    try:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                with opened(name) as (peer, compared):
                    check(peer, compared, plan, expected)
                    found.peers[name] = compared
                    if compared.same or plan.even_if_different:
                        time_beside(ours, peer, compared, plan)
            except MissingPeerError as error:
                found.skipped[name] = str(error)
            except (EngineError, ServerError) as error:
                found.ended(f"{name}: {error}")
                if not ours.lives():
                    found.ended("our server has gone, so the other peers were left out")
                    return
    except KeyboardInterrupt:
        found.ended("interrupted")


def check(contestant: Contestant, compared: Compared, plan: Plan, expected: Pictures) -> None:
    """Draw each order once, which also warms up, and compare every picture with its reference; the least counts.

    Args:
        expected: of `plan.checked`, (pictures, h, w, 3).
    """
    found: list[float] = []
    for setting in plan.drawn_once:
        drawn = contestant.draw(plan.orders[setting], keep=True)
        assert drawn.pixels is not None
        compared.first_seconds[setting] = drawn.seconds
        wanted = expected[: len(plan.orders[setting].prompts)]
        found += [psnr(picture, other) for picture, other in zip(drawn.pixels, wanted, strict=True)]
    compared.psnr = min(found)
    compared.same = compared.psnr >= LEAST_PSNR[compared.precision]


def time_beside(ours: Contestant, peer: Contestant, compared: Compared, plan: Plan) -> None:
    """Ours and a peer in turn in every setting; `compared` has each round as soon as it is over."""
    for setting in plan.settings:
        if setting == "mixed":
            rounds = _under_load(ours, peer, compared, plan)
        else:
            order = plan.orders[setting]
            rounds = interleaved(_timed(ours, order, peer.name), _timed(peer, order, peer.name), plan.rounds)
        for so_far in rounds:
            compared.rounds[setting] = so_far


def unheard(order: Order, peer: str, number: int) -> Order:
    """The same with prompts of this peer's round alone: ours keeps the embeddings of late prompts, and peers do not."""
    return replace(order, prompts=tuple(f"{prompt}, {peer} {number}" for prompt in order.prompts))


def _timed(who: Contestant, order: Order, peer: str) -> Callable[[int], float]:
    return lambda number: who.draw(unheard(order, peer, number)).seconds


def _under_load(ours: Contestant, peer: Contestant, compared: Compared, plan: Plan) -> Iterator[Rounds]:
    """Seconds until all of a load is answered; where it comes at a rate, which sets that time, the mean latency."""
    outcomes: dict[str, Sequence[Outcome]] = {}

    def served(who: Contestant) -> Callable[[int], float]:
        def call(number: int) -> float:
            load = plan.load(number)
            found = who.serve(replace(load, orders=[unheard(order, peer.name, number) for order in load.orders]))
            if wrong := [outcome.message for outcome in found if outcome.status != "ok"]:
                raise EngineError(f"{who.name} failed {len(wrong)} of {len(found)} requests of the load: {wrong[0]}")
            outcomes[who.name] = found
            return statistics.mean(outcome.seconds for outcome in found) if load.rate else span(found)

        return call

    for so_far in interleaved(served(ours), served(peer), plan.rounds):
        compared.loads.append((outcomes[ours.name], outcomes[peer.name]))
        yield so_far
