"""Ours, and the patterns of NVIDIA's examples: real tritonservers that are asked over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.peers.contestant import Drawn, Load, fields_of, in_turn
from bench.peers.order import Order
from bench.serving import started
from bench.traffic.asking import Outcome
from bench.traffic.mix import Asked
from bench.triton_patterns.patterns import PATTERNS, PatternServer
from server.async_client import AsyncClient
from server.config import ServerConfig

OURS = "ours"
# In which a server that lives says that it is ready.
READY_SECONDS = 5.0


class Served:
    """A server that runs, with a connection that stays open.

    Args:
        client: makes it; called within the event loop.
    """

    def __init__(self, name: str, client: Callable[[], AsyncClient], open_seconds: float = 0.0) -> None:
        self.name = name
        self.open_seconds = open_seconds
        self._runner = asyncio.Runner()
        self._client = self._runner.run(_made(client))

    def draw(self, order: Order, *, keep: bool = False) -> Drawn:
        """Ask for all pictures of an order at once, each by a request; seconds until the last has come.

        Raises:
            ServerError: one was refused.
        """
        return self._runner.run(self._draw(order, keep))

    async def _draw(self, order: Order, keep: bool) -> Drawn:
        begun = time.perf_counter()
        results = await asyncio.gather(*(self._client.generate(**fields) for fields in fields_of(order)))
        seconds = time.perf_counter() - begun
        return Drawn(seconds, np.stack([result.pixels()[0] for result in results]) if keep else None)

    def serve(self, load: Load) -> list[Outcome]:
        """A load, as many requests open as it says."""

        async def answer(asked: Asked) -> None:
            await self._client.generate(**asked.fields)

        return self._runner.run(load.sent(in_turn(answer)))

    def lives(self) -> bool:
        """Whether it says soon that it is ready."""
        return self._runner.run(self._lives())

    async def _lives(self) -> bool:
        try:
            async with asyncio.timeout(READY_SECONDS):
                return await self._client.is_ready()
        except TimeoutError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._runner.run(self._client.close())
        self._runner.close()


@contextlib.contextmanager
def our_server(config: ServerConfig, log: Path) -> Iterator[Served]:
    """Ours, started, until the block ends.

    Raises:
        ServerError: it does not start.
    """
    begun = time.perf_counter()
    with started(config, log) as server, _asked(OURS, lambda: AsyncClient(server.grpc_url), begun) as served:
        yield served


@contextlib.contextmanager
def pattern_server(name: str, config: ServerConfig, log: Path) -> Iterator[Served]:
    """A server with one of `PATTERNS`, started, until the block ends.

    Raises:
        ServerError: it does not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    server = PatternServer(PATTERNS[name], config, log)
    with server, _asked(name, server.client, begun) as served:
        yield served


@contextlib.contextmanager
def _asked(name: str, client: Callable[[], AsyncClient], begun: float) -> Iterator[Served]:
    served = Served(name, client, time.perf_counter() - begun)
    try:
        yield served
    finally:
        served.close()


async def _made(client: Callable[[], AsyncClient]) -> AsyncClient:
    return client()
