"""LoadGen's queries answered by a server, and what became of each."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.loadgen.process import LoadGen, Play, Sample
from server.answers import Result
from server.async_client import AsyncClient
from server.errors import ServerError
from server.fields import Value
from server.protocol import Disconnected

CONNECTIONS = 4
# In which a server that lives says that it is ready.
READY_SECONDS = 5.0
FAILURES_TOLD = 5
CACHED = "answered from the server's response cache, which the rules forbid: start it without"


def picture_of(folder: Path, prompt: int) -> Path:
    """The file of an accuracy run's image."""
    return folder / f"{prompt:05d}.png"


class Unanswered(ServerError):
    """There was no answer in all that time."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one query; times in seconds of the monotonic clock.

    Attributes:
        issued, ended: when it came from LoadGen, and was answered or failed.
        failure: why; empty where it was answered.
    """

    prompt: int
    issued: float
    ended: float
    failure: str = ""


class Answering:
    """Asks a server for images; an asynchronous context manager, for one event loop.

    Args:
        url: `host:port` of its gRPC.
        requests: the fields of each prompt's request.
        open_at_once: requests; those above wait here, and LoadGen counts their waiting.
        limit: seconds after which a request without an answer has failed.
        pictures: folder for the images, by the number of their prompt.

    Attributes:
        answered: so far, in the order of their ends.
        stopped: why no more can be answered; empty while they can.
    """

    def __init__(
        self,
        url: str,
        requests: Sequence[Mapping[str, Value]],
        *,
        open_at_once: int = 128,
        limit: float = 600.0,
        pictures: Path | None = None,
    ) -> None:
        self.answered: list[Answered] = []
        self.stopped = ""
        self._url, self._requests, self._limit, self._pictures = url, requests, limit, pictures
        self._clients = [AsyncClient(url) for _ in range(min(CONNECTIONS, open_at_once))]
        self._room = asyncio.Semaphore(open_at_once)
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Answering:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.gather(*(client.close() for client in self._clients))

    def stop(self, reason: str) -> None:
        """End `play` at once."""
        self.stopped = self.stopped or reason
        self._stop.set()

    async def ask(self, prompt: int) -> bytes:
        """Have an image drawn; gives its digest.

        Raises:
            ServerError: it was not.
            OSError: it cannot be kept.
        """
        client = self._clients[prompt % len(self._clients)]
        try:
            async with asyncio.timeout(self._limit):
                result = await client.generate(**self._requests[prompt])
        except TimeoutError:
            raise Unanswered(f"no answer in {self._limit:g} s") from None
        return await asyncio.to_thread(self._kept, prompt, result)

    async def ask_all(self, prompts: Sequence[int]) -> float:
        """Have images drawn, as many at a time as may be; gives the seconds that all of them took.

        Raises:
            ServerError: one of them was not.
        """

        async def one(prompt: int) -> None:
            async with self._room:
                await self.ask(prompt)

        begun = time.monotonic()
        tasks = [asyncio.create_task(one(prompt)) for prompt in prompts]
        try:
            await asyncio.gather(*tasks)
        finally:
            await _ended(tasks)
        return time.monotonic() - begun

    async def play(self, play: Play) -> None:
        """Answer all that LoadGen asks, to the end of its run, or until the server is gone or `stop` was called.

        Raises:
            ServerError: LoadGen failed.
        """
        tasks: set[asyncio.Task[None]] = set()
        async with LoadGen(play) as loadgen:

            async def answer_all() -> None:
                async for samples in loadgen.queries():
                    issued = time.monotonic()
                    for sample in samples:
                        tasks.add(task := asyncio.create_task(self._answer(loadgen, sample, issued)))
                        task.add_done_callback(tasks.discard)

            answering, stopping = asyncio.create_task(answer_all()), asyncio.create_task(self._stop.wait())
            await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
            rest = [stopping, *tasks] if answering.done() else [answering, stopping, *tasks]
            await _ended(rest)
        if answering.done() and not answering.cancelled():
            answering.result()

    def counts(self) -> dict[str, int]:
        failed = sum(bool(one.failure) for one in self.answered)
        return {"answered": len(self.answered) - failed, "failed": failed}

    def failures(self) -> list[str]:
        """Why the run ended early, and the ways in which queries failed, each with its number."""
        words = Counter(one.failure for one in self.answered if one.failure).most_common(FAILURES_TOLD)
        counted = [f"{count} of {len(self.answered)} queries failed: {failure}" for failure, count in words]
        return [self.stopped, *counted] if self.stopped else counted

    async def _answer(self, loadgen: LoadGen, sample: Sample, issued: float) -> None:
        failure, digest = "", b""
        async with self._room:
            try:
                digest = await self.ask(sample.prompt)
            except OSError as error:
                failure = f"an image cannot be kept: {error}"
                self.stop(failure)
            except ServerError as error:
                failure = str(error)
                if isinstance(error, Disconnected | Unanswered):
                    await self._look(failure)
        loadgen.complete(sample.query, digest)
        self.answered.append(Answered(sample.prompt, issued, time.monotonic(), failure))

    async def _look(self, failure: str) -> None:
        """Stop if the server is not ready any more."""
        try:
            async with asyncio.timeout(READY_SECONDS), AsyncClient(self._url) as client:
                ready = await client.is_ready()
        except TimeoutError:
            ready = False
        if not ready:
            self.stop(f"the server at {self._url} is gone: {failure}")

    def _kept(self, prompt: int, result: Result) -> bytes:
        if result.metadata.get("cached"):
            raise ServerError(CACHED)
        if len(result.images) != 1:
            raise ServerError(f"the answer has {len(result.images)} images instead of one")
        if self._pictures is not None:
            picture_of(self._pictures, prompt).write_bytes(result.images[0])
        return hashlib.sha256(result.images[0]).digest()


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
