"""What is let in: bounds of the queue, fair shares of it, and predictions of when a request would be done."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from server.backlog import Backlog
from server.config import ServerConfig
from server.errors import Overloaded
from server.job import Plot
from server.request import Request
from server.step_curve import StepCurve
from server.urgency import Urgency

# One client may hold so many times the room that is left (Choudhury and Hahne, 1998): whoever comes finds some.
SHARE_OF_ROOM = 8
RETRY_SECONDS = 1.0
# What others are predicted to cost a request with a deadline is counted so many times: those that are due earlier may
# still come, and a request that misses its deadline by little has taken all its calls from the others for nothing.
CAUTION = 1.5


@dataclass(frozen=True, slots=True)
class Cost:
    """What one image of a request takes.

    Attributes:
        calls: of the UNet.
        seconds: of the whole server, at its best throughput.
        alone: seconds, with the server to itself.
        full: seconds that it takes when all its calls are full.
        places: jobs like it in a full call.
        memory: bytes that it holds until it is answered.
    """

    calls: int
    seconds: float
    alone: float
    full: float
    places: float
    memory: int


class Admission:
    """Counts what is open, and decides what may come in. Thread-safe.

    Args:
        config: bounds.
        curve: step-time curve of a checkpoint at a size in pixels.
        clock: seconds, the jobs' own.
    """

    def __init__(self, config: ServerConfig, curve: Callable[[Plot], StepCurve], clock: Callable[[], float]) -> None:
        self.backlog = Backlog()
        self.decode_seconds = 0.0
        self._config = config
        self._curve = curve
        self._clock = clock
        self._urgency = Urgency(clock)
        self._lock = threading.Lock()
        self._images = 0
        self._memory = 0
        self._clients: Counter[str] = Counter()

    def cost(self, request: Request, passes: Sequence[tuple[Plot, int, int]]) -> Cost:
        """What an image takes, as far as is known.

        Args:
            passes: where each is drawn, its UNet calls, and the rows of each call.
        """
        parts = [self._pass(*one) for one in passes]
        return replace(
            parts[0],
            calls=sum(part.calls for part in parts),
            seconds=sum(part.seconds for part in parts),
            alone=sum(part.alone for part in parts),
            full=sum(part.full for part in parts),
            memory=max(part.memory for part in parts) + _brought(request),
        )

    def _pass(self, plot: Plot, calls: int, rows: int) -> Cost:
        curve = self._curve(plot)
        cap = curve.row_cap(self._config.max_rows)
        call = curve.seconds(max(cap, rows))
        pixels = plot.height * plot.width
        return Cost(
            calls=calls,
            seconds=calls * call * rows / max(cap, rows),
            alone=calls * curve.seconds(rows),
            full=calls * call,
            places=max(1.0, cap / rows),
            # Pixels while they are encoded and sent, and a latent of four channels at an eighth of the size.
            memory=3 * pixels + pixels // 4,
        )

    def enter(self, request: Request, cost: Cost) -> list[float]:
        """Let a request in; gives when each of its images is due.

        Raises:
            Overloaded: there is no room, or its deadline cannot be met.
        """
        with self._lock:
            self._check_room(request, cost)
            self._check_deadline(request, cost)
            dues = [self._urgency.due(request, cost.seconds, cost.alone) for _ in range(request.num_images)]
            self._count(request, cost, 1)
        for due in dues:
            self.backlog.change(due, cost.seconds, 1)
        return dues

    def leave(self, request: Request, cost: Cost) -> None:
        """Make room again: the request was answered."""
        with self._lock:
            self._count(request, cost, -1)

    def forget(self, request: Request, dues: list[float], cost: Cost) -> None:
        """The work of a request that ended before its images became jobs is not to be done."""
        for due in dues:
            self.backlog.change(due, -cost.seconds, -1)
        with self._lock:
            self._urgency.refund(request.client_id, len(dues) * cost.seconds)

    def refund(self, request: Request, seconds: float) -> None:
        """So much of a request's work is not to be done: its client does not owe it."""
        with self._lock:
            self._urgency.refund(request.client_id, seconds)

    def grow(self, request: Request, cost: Cost, memory: int) -> Cost:
        """A request that was let in holds so many more bytes for each image; gives its new cost.

        Raises:
            Overloaded: there is no room for them.
        """
        with self._lock:
            self._check_memory(request.num_images * memory)
            self._memory += request.num_images * memory
        return replace(cost, memory=cost.memory + memory)

    def _count(self, request: Request, cost: Cost, sign: int) -> None:
        self._images += sign * request.num_images
        self._memory += sign * request.num_images * cost.memory
        self._clients[request.client_id] += sign * request.num_images
        if not self._clients[request.client_id]:
            del self._clients[request.client_id]

    def _check_room(self, request: Request, cost: Cost) -> None:
        limit, count = self._config.queue_limit, request.num_images
        if self._images + count > limit:
            raise Overloaded(f"{self._images} images are waiting or running, this server takes {limit}", self._retry())
        self._check_memory(count * cost.memory)
        held, room = self._clients[request.client_id], limit - self._images
        if held and held + count > SHARE_OF_ROOM * room:
            raise Overloaded(
                f"client {request.client_id!r} has {held} of the {limit} images that this server takes, and the "
                f"{room} places left are kept for others too",
                self._retry(),
            )

    def _check_memory(self, more: int) -> None:
        if self._memory + more > self._config.queue_bytes:
            raise Overloaded(
                f"open requests hold {self._memory >> 20} MiB, this server allows {self._config.queue_bytes >> 20}",
                self._retry(),
            )

    def _retry(self) -> int:
        """Milliseconds until about a tenth of what is open has been answered."""
        return math.ceil(1000 * max(self.backlog.total()[0] / 10, RETRY_SECONDS))

    def _check_deadline(self, request: Request, cost: Cost) -> None:
        if not request.timeout_ms:
            return
        allowed, images = request.timeout_ms / 1000, request.num_images
        alone = self._needed((0.0, 0), 0, images, cost)
        if alone > allowed:
            what = "an image" if images == 1 else f"{images} images"
            raise Overloaded(
                f"timeout_ms is {request.timeout_ms}, but {what} of {cost.calls} UNet calls "
                f"{'takes' if images == 1 else 'take'} about {1000 * alone:.0f} ms even alone; allow more time, or ask "
                "for fewer steps"
            )
        predicted = self.predict(self._urgency.last_due(request, cost.seconds, cost.alone), images, cost)
        needed = alone + CAUTION * (predicted - alone)
        if needed > allowed:
            raise Overloaded(
                f"timeout_ms is {request.timeout_ms}, but the images would be done in about {1000 * needed:.0f} ms; "
                "allow more time, or send to another server",
                math.ceil(1000 * (needed - allowed) / CAUTION),
            )

    def predict(self, due: float, images: int, cost: Cost) -> float:
        """Seconds from now until so many images, the last of which is due then, would be done.

        What comes later is not foreseen; it may overtake what is not due yet.
        """
        return self._needed(self.backlog.ahead(due), self.backlog.total()[1], images, cost)

    def _needed(self, ahead: tuple[float, int], jobs: int, images: int, cost: Cost) -> float:
        """As `predict`, with (seconds, jobs) that are due earlier, and jobs in all."""
        company = (jobs + images - 1) / max(1.0, cost.places - 1)
        running = cost.alone + max(0.0, cost.full - cost.alone) * min(1.0, company)
        (seconds, earlier), places = ahead, int(cost.places)
        # While a call has places free, nobody waits for what is due earlier.
        if earlier + images > places:
            # Of those, as many as have the other places when one gets free are half done then.
            share = min(1.0, (earlier + images - 1 - (places - 1) / 2) / earlier) if earlier else 0.0
            running = max(seconds + images * cost.seconds, seconds * share + running)
        return running + self.decode_seconds


def _brought(request: Request) -> int:
    """Bytes of what came with a request, for each of its images: texts, and pictures as files and as pixels."""
    # Pixels, a mask, and what they become at the size that is drawn.
    pixels = 4 * request.source_height * request.source_width + 4 * request.height * request.width
    texts = len(request.prompt) + len(request.negative_prompt)
    return texts + ((request.picture_bytes + pixels) // request.num_images if request.pictures else 0)
