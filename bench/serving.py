"""A server to measure: the one at an address, or one started for the purpose."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from server.client import Client, Result
from server.config import ServerConfig
from server.launch import TritonServer
from server.request import Value


@contextlib.contextmanager
def running_server(url: str | None, model: Path, provider: str, log: Path) -> Iterator[str]:
    """The gRPC address of the server at `url`, or of one that serves `model` until the block ends."""
    if url is not None:
        yield url
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with TritonServer(ServerConfig(model=model.resolve(), provider=provider), log=log) as server:
        yield server.grpc_url


@dataclass(frozen=True, slots=True)
class Answer:
    """A result and when it came, in seconds since the first request was sent."""

    result: Result
    seconds: float


def ask_all(url: str, requests: Sequence[Mapping[str, Value]], concurrency: int) -> list[Answer]:
    """Send requests, so many at a time, each client in a thread with a connection of its own; answers in order.

    Raises:
        ServerError: the first request that was refused.
    """
    local = threading.local()
    clients: list[Client] = []
    started = time.monotonic()

    def ask(fields: Mapping[str, Value]) -> Answer:
        if not hasattr(local, "client"):
            local.client = Client(url)
            clients.append(local.client)
        result: Result = local.client.generate(**fields)
        return Answer(result, time.monotonic() - started)

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            return list(pool.map(ask, requests))
        finally:
            for client in clients:
                client.close()


def rows_per_call(answers: Sequence[Answer]) -> float:
    """Mean rows of the UNet calls that served these answers, if nobody else was served meanwhile."""
    timing = [answer.result.metadata["timing"] for answer in answers]
    return float(sum(t["unet_rows"] for t in timing) / sum(t["unet_calls"] for t in timing))
