"""LoadGen in a process of its own, whose queries come here over a pipe.

LoadGen cannot be stopped: its call returns when the last query is answered, and an exception that passes through it
leaves its threads behind, which ends the process. So it is given a process that can be ended. It also has an
interpreter of its own there, and issues queries on time whatever the client is busy with.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from bench.loadgen.rules import Scenario, configured, library
from server.errors import ServerError

Mode: TypeAlias = Literal["PerformanceOnly", "AccuracyOnly"]
# A process that was told to end, and does not.
END_SECONDS = 5.0


class Sample(NamedTuple):
    """One image that LoadGen wants: what it calls the query, and which of the prompts."""

    query: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Play:
    """What LoadGen is to do.

    Attributes:
        prompts: how many there are.
        folder: for its logs.
        settings: of LoadGen's `TestSettings`, by name, beside those of its own configuration.
    """

    scenario: Scenario
    mode: Mode
    prompts: int
    folder: Path
    settings: Mapping[str, int | float]


class LoadGen:
    """A running LoadGen; an asynchronous context manager, which ends the process on the way out."""

    def __init__(self, play: Play) -> None:
        # A fork would take gRPC's threads with it, and not their locks' owners.
        context = multiprocessing.get_context("spawn")
        self._link, self._other = context.Pipe()
        self._process = context.Process(target=perform, args=(play, self._other), name="loadgen", daemon=True)
        self._over = False

    async def __aenter__(self) -> LoadGen:
        self._process.start()
        self._other.close()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self._end)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    async def queries(self) -> AsyncIterator[Sequence[Sample]]:
        """The samples of each query when LoadGen issues it, until its run is over.

        Raises:
            ServerError: LoadGen ended before that.
        """
        loop, issued = asyncio.get_running_loop(), asyncio.Queue[Sequence[Sample] | None]()
        threading.Thread(target=_forward, args=(self._link, loop, issued), daemon=True).start()
        while samples := await issued.get():
            yield samples
        if samples is None:
            raise ServerError("LoadGen ended before its run did; what it had to say is above, or in its detail log")
        self._over = True

    def complete(self, query: int, answer: bytes = b"") -> None:
        """Say that a query is answered, and with what; nothing where it failed."""
        # Where nobody takes it, LoadGen has ended, and `queries` says so.
        with contextlib.suppress(OSError):
            self._link.send((query, answer))

    def _end(self) -> None:
        if self._over:
            self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join(END_SECONDS)
        self._link.close()


def _forward(link: Connection, loop: asyncio.AbstractEventLoop, issued: asyncio.Queue[Sequence[Sample] | None]) -> None:
    """Put what comes into a queue of the event loop: samples; an empty list at the end, None if there was none."""
    samples: Sequence[Sample] | None = None
    while samples != []:
        try:
            samples = [Sample(*sample) for sample in link.recv()]
        except (EOFError, OSError):
            samples = None
        try:
            loop.call_soon_threadsafe(issued.put_nowait, samples)
        except RuntimeError:
            return
        if samples is None:
            return


def perform(play: Play, link: Connection) -> None:
    """Run LoadGen to its end; in its own process."""
    # The one who started it ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loadgen = library()
    settings = configured(play.scenario)
    settings.mode = getattr(loadgen.TestMode, play.mode)
    for name, value in play.settings.items():
        setattr(settings, name, value)

    def issue(samples: Sequence[Any]) -> None:
        link.send([(sample.id, sample.index) for sample in samples])

    def nothing(*indices: object) -> None:
        """Prompts are small, and sent at once."""

    threading.Thread(target=_completing, args=(loadgen, link), daemon=True).start()
    system = loadgen.ConstructSUT(issue, nothing)
    prompts = loadgen.ConstructQSL(play.prompts, play.prompts, nothing, nothing)
    loadgen.StartTestWithLogSettings(system, prompts, settings, _logs(loadgen, play.folder), str(play.folder / "audit"))
    loadgen.DestroyQSL(prompts)
    loadgen.DestroySUT(system)
    link.send([])


def _completing(loadgen: Any, link: Connection) -> None:
    """Hand answers to LoadGen, which copies them at once."""
    while True:
        try:
            query, answer = link.recv()
        except EOFError:
            # Nobody will answer what is still open, and LoadGen would wait for it.
            os._exit(1)
        held = array.array("B", answer)
        address, length = held.buffer_info()
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query, address, length)])


def _logs(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = f"{folder}/"
    output.copy_summary_to_stdout = False
    logs = loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    return logs
