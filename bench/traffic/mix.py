"""Mixed requests, drawn one by one from a seed: what they ask, how they are sent, and how their clients behave."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias, get_args

from bench.traffic.spread import Between, Numbers, Spread, drawn, number, some
from bench.traffic.tasks import NEEDS_SIZE, Task, task_fields
from server.errors import ServerError
from server.fields import Value

Face: TypeAlias = Literal["unary", "stream", "http"]
# How a client ends its request: it waits for the answer, cancels the call, drops the connection, or cancels by id.
Ending: TypeAlias = Literal["answer", "cancel", "close", "id"]
# A side of a square picture, or height and width, in pixels.
Size: TypeAlias = int | tuple[int, int]


class Kind(NamedTuple):
    """What must take as long alone.

    Attributes:
        guidance: of a range of scales above 1, the highest; of recorded ones above 1, `GUIDED`; `UNGUIDED` of all that
            take one row.
        height, width: in pixels; 0 where a request does not say, and the server draws its first size.
    """

    steps: int
    sampler: str
    guidance: float
    height: int
    width: int
    images: int
    task: str = "txt2img"


ALL_FACES: tuple[Face, ...] = get_args(Face)
# Those of gRPC.
FACES: tuple[Face, ...] = ("unary", "stream")
LEAVING: tuple[Ending, ...] = ("cancel", "close", "id")
# Any scale above 1 takes as long, and so does any other.
GUIDED, UNGUIDED = 7.5, 1.0
# Of pictures.
SEEDS = 2**32
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
        return self.kind.images


@dataclass(frozen=True, slots=True)
class Given:
    """What a recorded request was like; None where that was not recorded, and is drawn."""

    steps: int | None = None
    size: Size | None = None
    sampler: str | None = None
    guidance: float | None = None
    prompt: str | None = None
    client_id: str | None = None


NOTHING = Given()


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests of a load are like; each of several values is as likely as the others, unless it has a weight.

    Attributes:
        sizes: of pictures, in pixels; the server's first when absent.
        prompt_words: of every prompt, most of them one token each; a short sentence when absent.
        clients: how many client ids share the load, or their names; 0 sends none.
        cancel_share, malformed_share: parts of all requests, 0 to 1.
        endings: of those that are cancelled.
        leave_within: seconds after sending in which those end.
        salt: is added to the seeds of pictures, so that a load that is sent again finds no answers of its own in the
            server's cache; all else is as without.
        name: begins every request's id, so that two loads on one server do not cancel each other's.

    Raises:
        ServerError: there are no sizes, and a task must know them.
    """

    steps: Numbers[int] = (20,)
    samplers: Spread[str] = ("euler",)
    guidance: Numbers[float] = (GUIDED,)
    sizes: Spread[Size] | None = None
    images: Numbers[int] = (1,)
    formats: Spread[str] = ("png",)
    faces: Spread[Face] = ("unary",)
    tasks: Spread[Task] = field(default_factory=lambda: (Task(),))
    prompt_words: Numbers[int] | None = None
    clients: int | Spread[str] = 0
    cancel_share: float = 0.0
    malformed_share: float = 0.0
    endings: Spread[Ending] = LEAVING
    leave_within: float = 1.0
    timeouts_ms: Numbers[int] = (0,)
    priorities: Numbers[int] = (0,)
    preview_interval: int = 0
    seed: int = 0
    salt: int = 0
    name: str = "load"

    def __post_init__(self) -> None:
        if self.sizes is None and (tasks := [task.name for task in some(self.tasks) if task.name in NEEDS_SIZE]):
            raise ServerError(
                f"{tasks[0]} begins with a picture that must fit what is drawn: give a size that the server has, as "
                "`size` in a workload or by --size"
            )

    def asked(self, number_: int, given: Given = NOTHING) -> Asked:
        """Request `number_`, the same every time."""
        draw = random.Random(f"{self.seed}/{number_}")
        task, kind, guidance = self._kind(draw, given)
        face = drawn(self.faces, draw)
        fields: dict[str, Value] = {**kind_fields(kind), "guidance_scale": guidance}
        fields |= {"prompt": given.prompt or self._prompt(draw), "seed": (draw.randrange(SEEDS) + self.salt) % SEEDS}
        fields |= {"output_format": drawn(self.formats, draw), "request_id": f"{self.name}-{number_}"}
        client = given.client_id or self._client(draw)
        fields |= {"client_id": client} if client else {}
        timeout_ms, priority = number(self.timeouts_ms, draw), number(self.priorities, draw)
        fields |= {"timeout_ms": timeout_ms} if timeout_ms else {}
        fields |= {"priority": priority} if priority else {}
        fields |= {"preview_interval": self.preview_interval} if self.preview_interval and face == "stream" else {}
        fields |= task_fields(task, kind.height, kind.width, draw)
        return self._with_manners(Asked(number_, fields, kind, face), draw)

    def _kind(self, draw: random.Random, given: Given) -> tuple[Task, Kind, float]:
        steps, sampler = number(self.steps, draw), drawn(self.samplers, draw)
        guidance = number(self.guidance, draw)
        size: Size = 0 if self.sizes is None else drawn(self.sizes, draw)
        images, task = number(self.images, draw), drawn(self.tasks, draw)
        steps, sampler = given.steps or steps, given.sampler or sampler
        guidance, size = guidance if given.guidance is None else given.guidance, given.size or size
        alike = guidance if guidance > 1 else UNGUIDED
        if guidance > 1 and given.guidance is not None:
            alike = GUIDED
        elif guidance > 1 and isinstance(self.guidance, Between):
            alike = self.guidance.high
        return task, Kind(steps, sampler, alike, *sides(size), images, task.label), guidance

    def _prompt(self, draw: random.Random) -> str:
        """One of 448 where no length is asked for, so that some have been encoded before and some have not."""
        if self.prompt_words is None:
            return _sentence(draw)
        words: list[str] = []
        wanted = number(self.prompt_words, draw)
        while len(words) < wanted:
            words += [*(["and"] if words else []), *_sentence(draw).split()]
        return " ".join(words[:wanted])

    def _client(self, draw: random.Random) -> str:
        if isinstance(self.clients, int):
            return f"client-{draw.randrange(self.clients)}" if self.clients else ""
        return drawn(self.clients, draw)

    def _with_manners(self, asked: Asked, draw: random.Random) -> Asked:
        manner = draw.random()
        if manner < self.malformed_share:
            spoilt = {**asked.fields, **draw.choice(MALFORMED)}
            return replace(asked, fields={name: v for name, v in spoilt.items() if v is not None}, malformed=True)
        if manner < self.malformed_share + self.cancel_share:
            leaves_after = draw.uniform(0, self.leave_within)
            return replace(asked, ending=drawn(self.endings, draw), leaves_after=leaves_after)
        return asked

    def requests(self, count: int | None = None, given: Sequence[Given] = ()) -> Iterator[Asked]:
        """The first `count` of them, or all without end; the first ones as they are given."""
        for number_ in itertools.count() if count is None else range(count):
            yield self.asked(number_, given[number_] if number_ < len(given) else NOTHING)


def kind_fields(kind: Kind) -> dict[str, Value]:
    """As fields of a request."""
    size = {name: side for name, side in (("height", kind.height), ("width", kind.width)) if side}
    return {
        "num_inference_steps": kind.steps,
        "sampler": kind.sampler,
        "guidance_scale": kind.guidance,
        **size,
        "num_images": kind.images,
    }


def sides(size: Size) -> tuple[int, int]:
    """Height and width in pixels."""
    return (size, size) if isinstance(size, int) else size


def _sentence(draw: random.Random) -> str:
    one, other = draw.sample(COLOURS, 2)
    return f"a {one} {draw.choice(SHAPES)} on a {other} background"
