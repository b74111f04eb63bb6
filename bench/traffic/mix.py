"""Mixed requests, drawn one by one from a seed: what they ask, how they are sent, and how their clients behave."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, get_args

from server.fields import Value

Face: TypeAlias = Literal["unary", "stream"]
# How a client ends its request: it waits for the answer, cancels the call, drops the connection, or cancels by id.
Ending: TypeAlias = Literal["answer", "cancel", "close", "id"]
# What must take as long alone: steps, sampler, guidance, side in pixels, images.
Kind: TypeAlias = tuple[int, str, float, int, int]
Item = TypeVar("Item")

FACES: tuple[Face, ...] = get_args(Face)
LEAVING: tuple[Ending, ...] = ("cancel", "close", "id")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPES = ("circle", "square", "star", "ring", "heart", "triangle", "cross", "diamond")
# Each is refused for another reason, by the server and not by our client.
MALFORMED: tuple[Mapping[str, Value | None], ...] = (
    {"num_inference_steps": 0},
    {"num_inference_steps": 501},
    {"sampler": "no such sampler"},
    {"height": 77},
    {"guidance_scale": float("nan")},
    {"seed": [1.0, 2.0]},
    {"prompt": None},
    {"negative_prompt": "x" * 20_000},
    {"eta": 0.5, "sampler": "euler"},
    {"guidance_start": 0.75, "guidance_end": 0.25},
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a load.

    Attributes:
        leaves_after: seconds from sending it until its client ends it, unless it waits for the answer.
        malformed: whether it must be refused.
    """

    number: int
    fields: Mapping[str, Value]
    kind: Kind
    face: Face = "unary"
    ending: Ending = "answer"
    leaves_after: float = 0.0
    malformed: bool = False

    @property
    def images(self) -> int:
        return self.kind[-1]


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests of a load are like; each of several values is as likely as the others.

    Attributes:
        sizes: sides of square pictures, in pixels.
        clients: how many client ids share the load; 0 sends none.
        cancel_share, malformed_share: parts of all requests, 0 to 1.
        endings: of those that are cancelled.
        leave_within: seconds after sending in which those end.
        name: begins every request's id, so that two loads on one server do not cancel each other's.
    """

    steps: Sequence[int] = (20,)
    samplers: Sequence[str] = ("euler",)
    guidance: Sequence[float] = (7.5,)
    sizes: Sequence[int] = (128,)
    images: Sequence[int] = (1,)
    formats: Sequence[str] = ("png",)
    faces: Sequence[Face] = ("unary",)
    clients: int = 0
    cancel_share: float = 0.0
    malformed_share: float = 0.0
    endings: Sequence[Ending] = LEAVING
    leave_within: float = 1.0
    timeouts_ms: Sequence[int] = (0,)
    preview_interval: int = 0
    seed: int = 0
    name: str = "load"

    def asked(self, number: int) -> Asked:
        """Request `number`, the same every time."""
        draw = random.Random(f"{self.seed}/{number}")
        steps, sampler = draw.choice(self.steps), draw.choice(self.samplers)
        guidance, side, images = draw.choice(self.guidance), draw.choice(self.sizes), draw.choice(self.images)
        kind = (steps, sampler, guidance, side, images)
        face = draw.choice(self.faces)
        fields = {**kind_fields(kind), "prompt": _prompt(draw), "seed": draw.randrange(2**32)}
        fields |= {"output_format": draw.choice(self.formats), "request_id": f"{self.name}-{number}"}
        fields |= {"client_id": f"client-{draw.randrange(self.clients)}"} if self.clients else {}
        timeout_ms = draw.choice(self.timeouts_ms)
        fields |= {"timeout_ms": timeout_ms} if timeout_ms else {}
        fields |= {"preview_interval": self.preview_interval} if self.preview_interval and face == "stream" else {}
        return self._with_manners(number, fields, kind, face, draw)

    def _with_manners(
        self, number: int, fields: Mapping[str, Value], kind: Kind, face: Face, draw: random.Random
    ) -> Asked:
        manner = draw.random()
        if manner < self.malformed_share:
            spoilt = {**fields, **draw.choice(MALFORMED)}
            return Asked(number, {name: v for name, v in spoilt.items() if v is not None}, kind, face, malformed=True)
        if manner < self.malformed_share + self.cancel_share:
            return Asked(number, fields, kind, face, draw.choice(self.endings), draw.uniform(0, self.leave_within))
        return Asked(number, fields, kind, face)

    def requests(self, count: int | None = None) -> Iterator[Asked]:
        """The first `count` of them, or all without end."""
        number = 0
        while count is None or number < count:
            yield self.asked(number)
            number += 1

    @property
    def kinds(self) -> list[Kind]:
        """All that requests may be of."""
        return [
            (steps, sampler, guidance, side, images)
            for steps in self.steps
            for sampler in self.samplers
            for guidance in self.guidance
            for side in self.sizes
            for images in self.images
        ]


def kind_fields(kind: Kind) -> dict[str, Value]:
    """As fields of a request."""
    steps, sampler, guidance, side, images = kind
    return {
        "num_inference_steps": steps,
        "sampler": sampler,
        "guidance_scale": guidance,
        "height": side,
        "width": side,
        "num_images": images,
    }


def _prompt(draw: random.Random) -> str:
    """One of 448, so that some have been encoded before and some have not."""
    one, other = draw.sample(COLOURS, 2)
    return f"a {one} {draw.choice(SHAPES)} on a {other} background"
