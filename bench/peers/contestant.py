"""What is measured of ours and of each peer alike: pictures wanted together, and a load of different requests."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench.peers.order import SPACING, Order
from bench.traffic import loops
from bench.traffic.arrivals import poisson_times
from bench.traffic.asking import Outcome
from bench.traffic.mix import COLOURS, SHAPES, Asked, Kind
from engines.errors import EngineError
from server.errors import ServerError
from server.fields import Value


@dataclass(frozen=True, slots=True)
class Drawn:
    """An order that was drawn.

    Attributes:
        pixels: (pictures, h, w, 3), where they were wanted.
    """

    seconds: float
    pixels: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Orders of one picture each, and how they come.

    Attributes:
        concurrency: open at a time.
        rate: a second, at random times; 0 sends by concurrency.
        seed: of the times.
    """

    orders: Sequence[Order]
    concurrency: int
    rate: float = 0.0
    seed: int = 0

    @property
    def requests(self) -> list[Asked]:
        """Numbered as the orders are."""
        return [
            Asked(number, fields_of(order)[0], Kind(order.steps, "euler", order.guidance, order.height, order.width, 1))
            for number, order in enumerate(self.orders)
        ]

    async def sent(self, send: loops.Send) -> list[Outcome]:
        """What became of each."""
        if self.rate:
            times = poisson_times(self.rate, self.seed, count=len(self.orders))
            return await loops.open_loop(self.requests, times, send)
        return await loops.closed_loop(iter(self.requests), self.concurrency, send)


class Contestant(Protocol):
    """Ours or a peer, loaded."""

    name: str

    def draw(self, order: Order, *, keep: bool = False) -> Drawn:
        """Draw pictures that are wanted together; with their pixels if they are to be kept."""

    def serve(self, load: Load) -> list[Outcome]:
        """Answer a load."""


def in_turn(answer: Callable[[Asked], Awaitable[object]]) -> loops.Send:
    """Sends by something that answers or raises; failures are outcomes."""

    async def send(asked: Asked, intended: float) -> Outcome:
        sent, message = time.monotonic(), ""
        try:
            await answer(asked)
        except (ServerError, EngineError) as error:
            message = str(error)
        return Outcome(asked, "error" if message else "ok", intended, sent, time.monotonic(), message)

    return send


def fields_of(order: Order) -> list[dict[str, Value]]:
    """The requests for the pictures of an order, each complete."""
    return [
        {
            "prompt": single.prompts[0],
            "seed": single.seeds[0],
            "num_inference_steps": single.steps,
            "guidance_scale": single.guidance,
            "height": single.height,
            "width": single.width,
            "sampler": "euler",
            "timestep_spacing": SPACING,
            # Pixels, as peers give them.
            "output_format": "raw",
        }
        for single in order.singles()
    ]


def mixed_orders(like: Order, steps: Sequence[int], count: int, seed: int) -> list[Order]:
    """Pictures of different prompts, seeds and steps, drawn from a seed; all else as `like`.

    Every number of steps comes as often as the others, or once more or less.
    """
    draw = random.Random(seed)
    chosen = [steps[i % len(steps)] for i in range(count)]
    draw.shuffle(chosen)
    return [replace(like, prompts=(prompt(draw),), seeds=(draw.randrange(2**31),), steps=number) for number in chosen]


def prompt(draw: random.Random) -> str:
    """What the embedded checkpoint can draw, and any other."""
    one, other = draw.sample(COLOURS, 2)
    return f"a {one} {draw.choice(SHAPES)} on a {other} background"
