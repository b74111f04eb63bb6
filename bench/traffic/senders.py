"""A load sent from this process, or by several that share it, so that one interpreter need not keep up with it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TypeAlias

from bench.serving import Address
from bench.traffic.asking import Connections, Outcome, ask, built
from bench.traffic.loops import Halt, closed_loop, open_loop, settle
from bench.traffic.mix import NOTHING, Asked, Given, Mix
from server.errors import InvalidRequest, ServerError
from server.protocol import Message

# From when all processes are ready to when the first request is due.
LEAD_SECONDS = 0.5
START_SECONDS = 120.0
END_SECONDS = 10.0
# Of a client whose connection broke, before it asks again.
PAUSE_SECONDS = 0.1
# A request, and the time of the monotonic clock at which it was to be sent.
Due: TypeAlias = tuple[Asked, float]


@dataclass(frozen=True, slots=True)
class Share:
    """What one process sends: every `of`-th request, from `index` on.

    Attributes:
        times: of all requests, in seconds from the start; empty for a closed loop.
        concurrency: of this share, where there are no times.
        count, seconds: where a closed loop ends; of all shares.
        connections: of this share.
        limit: seconds without an answer after which a request is lost.
    """

    address: Address
    mix: Mix
    times: tuple[float, ...] = ()
    given: tuple[Given, ...] = ()
    concurrency: int = 1
    count: int | None = None
    seconds: float | None = None
    connections: int = 4
    limit: float = 120.0
    index: int = 0
    of: int = 1

    def requests(self) -> Iterator[Asked]:
        count = len(self.times) or self.count
        for number in itertools.islice(itertools.count(), self.index, count, self.of):
            yield self.mix.asked(number, self.given[number] if number < len(self.given) else NOTHING)


@dataclass(slots=True)
class Sent:
    """What became of a load.

    Attributes:
        unfinished: requests that were sent and have no outcome, since the load ended before, and when they were due.
        reason: why it ended early, if it did.
        cpu_seconds: of the sending processes, while they sent.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    unfinished: list[Due] = field(default_factory=list)
    reason: str | None = None
    cpu_seconds: float = 0.0


async def send_share(share: Share, halt: Halt, begin: Callable[[], float]) -> Sent:
    """Send a share from this process.

    Args:
        begin: called when all is ready; gives the time of the monotonic clock at which the load begins.
    """
    async with Connections(share.address.grpc, share.connections, share.address.http) as connections:
        # Drawing a request and building its message takes longer than sending it.
        prepared = list(share.requests()) if share.times else []
        messages = {one.number: _built(connections, one) for one in prepared if one.ending == "answer"}

        sent: dict[int, Due] = {}

        async def send(asked: Asked, intended: float) -> Outcome:
            sent[asked.number] = asked, intended
            return await ask(connections, asked, intended, share.limit, messages.pop(asked.number, None))

        # It takes longer the more was prepared, and would make the first requests late.
        settle()
        begun = begin()
        cpu = time.process_time()
        if share.times:
            times = share.times[share.index :: share.of]
            outcomes = await open_loop(prepared, times, halt.watched(send), begun, halt)
        else:
            watched = halt.watched(send, PAUSE_SECONDS)
            outcomes = await closed_loop(share.requests(), share.concurrency, watched, share.seconds, halt)
        for outcome in outcomes:
            sent.pop(outcome.asked.number, None)
        return Sent(outcomes, list(sent.values()), halt.reason, time.process_time() - cpu)


def _built(connections: Connections, asked: Asked) -> Message | None:
    """None where it cannot be built, which is found again, and told, when it is sent."""
    try:
        return built(connections.client(asked), asked)
    except InvalidRequest:
        return None


async def send_load(share: Share, processes: int = 1) -> Sent:
    """Send a whole load; an interrupt (Ctrl-C) ends it early, with what there is.

    Raises:
        ServerError: a sending process ended.
    """
    halt = Halt()
    with _interruptible(halt):
        if processes == 1:
            return await send_share(share, halt, time.monotonic)
        parts = [_part(share, index, processes) for index in range(processes)]
        return await asyncio.to_thread(_send_parts, [part for part in parts if part is not None], halt)


def _part(share: Share, index: int, processes: int) -> Share | None:
    """None where there are more processes than clients."""
    concurrency = len(range(index, share.concurrency, processes))
    connections = max(1, share.connections // processes)
    if not share.times and not concurrency:
        return None
    return replace(share, index=index, of=processes, concurrency=concurrency, connections=connections)


@contextlib.contextmanager
def _interruptible(halt: Halt) -> Iterator[None]:
    def interrupt() -> None:
        halt.reason = halt.reason or "interrupted"

    # Signals are for the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _send_parts(shares: list[Share], halt: Halt) -> Sent:
    # A fork would take gRPC's threads with it, and not their locks' owners.
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in shares]
    processes = [
        context.Process(target=_process, args=(share, theirs), daemon=True)
        for share, (_, theirs) in zip(shares, pairs, strict=True)
    ]
    ours = [pair[0] for pair in pairs]
    try:
        for process, (_, theirs) in zip(processes, pairs, strict=True):
            process.start()
            theirs.close()
        for pipe in ours:
            if not pipe.poll(START_SECONDS) or pipe.recv() != "ready":
                raise EOFError
        begun = time.monotonic() + LEAD_SECONDS
        for pipe in ours:
            pipe.send(begun)
        return _gathered(ours, halt)
    except (EOFError, ConnectionError):
        raise ServerError("a process that sends requests ended before it had sent them; see above") from None
    finally:
        for process, pipe in zip(processes, ours, strict=True):
            process.join(END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()


def _gathered(pipes: list[Connection], halt: Halt) -> Sent:
    sent = Sent()
    told = False
    for pipe in pipes:
        while not pipe.poll(0.2):
            if halt.reason and not told:
                told = True
                _tell(pipes, halt.reason)
        part: Sent = pipe.recv()
        sent.outcomes += part.outcomes
        sent.unfinished += part.unfinished
        sent.reason = sent.reason or part.reason
        sent.cpu_seconds += part.cpu_seconds
    sent.outcomes.sort(key=lambda outcome: outcome.asked.number)
    return sent


def _tell(pipes: list[Connection], reason: str) -> None:
    for pipe in pipes:
        # One that has sent its share is gone, and what it found waits in its pipe.
        with contextlib.suppress(OSError):
            pipe.send(reason)


def _process(share: Share, pipe: Connection) -> None:
    """What runs in a process of its own."""
    # The parent is told of Ctrl-C as well, and says what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    halt = Halt()
    listening: list[asyncio.Task[None]] = []

    def begin() -> float:
        pipe.send("ready")
        begun = float(pipe.recv())
        listening.append(asyncio.ensure_future(_told_to_stop(pipe, halt)))
        return begun

    async def sending() -> Sent:
        try:
            return await send_share(share, halt, begin)
        finally:
            for task in listening:
                task.cancel()

    pipe.send(asyncio.run(sending()))


async def _told_to_stop(pipe: Connection, halt: Halt) -> None:
    while not pipe.poll():
        await asyncio.sleep(0.2)
    halt.reason = str(pipe.recv())
