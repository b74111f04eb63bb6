"""What Triton and the models around the service add to a request, over the same service in this process."""

from __future__ import annotations

import asyncio
import queue
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from bench.reactions.kept import FEWEST_OF_P99, Kept
from bench.serving import fake_config, started
from bench.traffic.latencies import milliseconds, percentile
from server.async_client import AsyncClient
from server.checkpoints import open_checkpoints
from server.client import Client
from server.config import ServerConfig
from server.errors import ServerError
from server.fields import Value
from server.service import Service

STEPS = (1, 2, 3, 4)
WARM_UP = 20
PROMPT = "a red circle on a blue background"
# Asks, and may say at which time of the performance counter it was answered, if not now.
Way: TypeAlias = Callable[[Mapping[str, Value]], object]


class Mailbox:
    """A sink from which the answer is taken."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[ServerError | None] = queue.SimpleQueue()

    def progress(self, event: Mapping[str, Any]) -> None:
        """Nobody asks for it."""

    def preview(self, event: Mapping[str, Any], data: bytes) -> None:
        """Nobody asks for it."""

    def image(self, event: Mapping[str, Any], data: bytes) -> None:
        """Nobody asks for it."""

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        self._answers.put(None)

    def fail(self, error: ServerError) -> None:
        self._answers.put(error)

    def wait(self) -> None:
        """Until the answer is there.

        Raises:
            ServerError: it is an error.
        """
        error = self._answers.get()
        if error is not None:
            raise error


class InProcess:
    """The service alone; a context manager."""

    def __init__(self, config: ServerConfig) -> None:
        self._service = Service(open_checkpoints(config), config)

    def __enter__(self) -> InProcess:
        self._service.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._service.close()

    def ask(self, fields: Mapping[str, Value]) -> None:
        mailbox = Mailbox()
        self._service.submit({name: [value] for name, value in fields.items()}, mailbox)
        mailbox.wait()


class Streaming:
    """A client of the stream, which unlike `server.client.Client` starts no thread for each request."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._url = url

    def __enter__(self) -> Streaming:
        self._client = self._runner.run(self._opened())
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    async def _opened(self) -> AsyncClient:
        return AsyncClient(self._url)

    def ask(self, fields: Mapping[str, Value]) -> float:
        """When the answer was there; the stream ends a moment later."""
        return self._runner.run(self._answered(fields))

    def ping(self, fields: Mapping[str, Value]) -> None:
        """Only ask whether the server is ready."""
        self._runner.run(self._client.is_ready())

    async def _answered(self, fields: Mapping[str, Value]) -> float:
        async for event in self._client.events(**fields):
            if event.result is not None:
                answered = time.perf_counter()
        return answered


def overhead(model: Path, repeats: int, log: Path, kept: Kept) -> dict[str, Any]:
    """Latency in process, of the unary model and of the stream, asked in turn; milliseconds.

    Calls of the UNet take next to no time, so that what is left is the host's. A ping is the least that anything asked
    over gRPC takes on this machine.
    """
    config = fake_config(model, ())
    with (
        InProcess(config) as alone,
        started(config, log) as server,
        Client(server.grpc_url) as client,
        Streaming(server.grpc_url) as streaming,
    ):
        ways: dict[str, Way] = {
            "in_process": alone.ask,
            "unary": lambda fields: client.generate(**fields),
            "stream": streaming.ask,
            "ping": streaming.ping,
        }
        seconds = in_turn(ways, repeats)
    pooled = {way: [s for steps in STEPS for s in seconds[way][steps]] for way in ways}
    kept["latency"] = {way: [1e3 * s for s in values] for way, values in pooled.items()}
    kept["added latency"] = {way: pairs_ms(pooled[way], pooled["in_process"]) for way in ("unary", "stream")}
    return {
        "added_ms": {way: added(pooled[way], pooled["in_process"]) for way in ("unary", "stream")},
        "latency_ms": {way: milliseconds(values) for way, values in pooled.items()},
        "p50_ms_by_steps": {
            way: {str(steps): round(1e3 * statistics.median(s), 3) for steps, s in values.items()}
            for way, values in seconds.items()
        },
    }


def in_turn(ways: Mapping[str, Way], repeats: int) -> dict[str, dict[int, list[float]]]:
    """Seconds by way and step count; whatever else the machine does meets all ways alike."""
    seconds: dict[str, dict[int, list[float]]] = {way: {steps: [] for steps in STEPS} for way in ways}
    for turn in range(-WARM_UP, repeats):
        for steps in STEPS:
            fields: dict[str, Value] = {"prompt": PROMPT, "num_inference_steps": steps, "seed": turn + WARM_UP}
            for way, ask in ways.items():
                begun = time.perf_counter()
                answered = ask(fields)
                ended = answered if isinstance(answered, float) else time.perf_counter()
                if turn >= 0:
                    seconds[way][steps].append(ended - begun)
    return seconds


def added(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """By how much percentiles differ, and the median difference of requests asked one after the other.

    The 99th only of as many requests as have one.
    """
    shares = (0.5, 0.99) if len(ours) >= FEWEST_OF_P99 else (0.5,)
    found = {f"p{100 * share:g}": 1e3 * (percentile(ours, share) - percentile(theirs, share)) for share in shares}
    found["median_of_pairs"] = statistics.median(pairs_ms(ours, theirs))
    return {name: round(value, 3) for name, value in found.items()}


def pairs_ms(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """By how many milliseconds one request differs from the other that was asked beside it."""
    return [1e3 * (one - other) for one, other in zip(ours, theirs, strict=True)]
