"""A server to measure: the one at an address, or one started for the purpose."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench.simulated.accelerator import ACCELERATORS
from server.answers import Result
from server.client import Client
from server.config import ServerConfig
from server.errors import ServerError
from server.fields import Value
from server.launch import TritonServer

# Between measured points a step-time curve is linear, as these models of accelerators are.
CURVE_ROWS = (2, 16)
Curve = tuple[tuple[int, float], ...]
USUAL_PORTS = {"http": "8000", "grpc": "8001", "metrics": "8002"}
# Of a checkpoint: its name in the server, and its export folder.
Named = tuple[str, Path]


def accelerator_curve(name: str) -> Curve:
    """(rows, seconds) of a model of a device."""
    return tuple((rows, ACCELERATORS[name].seconds(rows)) for rows in CURVE_ROWS)


def fake_config(model: Path, step_seconds: Curve, max_rows: int = 16, queue_limit: int = 1024) -> ServerConfig:
    """A deployment whose UNet calls take the seconds of a curve and compute nothing; all else is real, and light."""
    return ServerConfig(
        model=model.resolve(),
        provider="fake",
        step_seconds=step_seconds,
        max_rows=max_rows,
        queue_limit=queue_limit,
        text_encoder="in_process",
        vae_decoder="in_process",
    )


@dataclass(frozen=True, slots=True)
class Address:
    """Of a server: `host:port` of its gRPC, and the URLs of its metrics and its HTTP, where these are known."""

    grpc: str
    metrics: str | None = None
    http: str | None = None

    @classmethod
    def of(cls, grpc: str, metrics: str | None, http: str | None) -> Address:
        """With what Triton's own ports say of what is not given."""
        host, _, port = grpc.rpartition(":")
        usual = host if port == USUAL_PORTS["grpc"] else None
        return cls(
            grpc,
            metrics or (usual and f"http://{usual}:{USUAL_PORTS['metrics']}/metrics"),
            http or (usual and f"http://{usual}:{USUAL_PORTS['http']}"),
        )


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Where the server is that is measured, or what is started for the purpose."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", help="host:port of a running server's gRPC; without it one is started")
    group.add_argument("--metrics-url", help="of that server; http://HOST:8002/metrics if its gRPC is at 8001")
    group.add_argument("--http-url", help="of that server; http://HOST:8000 if its gRPC is at 8001")
    group.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    group.add_argument(
        "--also",
        type=named_folder,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a further checkpoint to serve",
    )
    group.add_argument("--provider", default="auto", help="of the server that is started: auto, cpu, openvino, cuda")
    group.add_argument(
        "--fake",
        nargs="?",
        const="h100",
        choices=ACCELERATORS,
        help="start a server whose UNet only takes the seconds of a model of a device (h100 if none is named)",
    )
    group.add_argument("--max-rows", type=int, default=16, help="rows of one UNet call; a guided image takes two")
    group.add_argument("--queue-limit", type=int, default=1024, help="images accepted and not yet answered")
    group.add_argument("--log", type=Path, default=Path("out/triton.log"), help="file for that server's messages")


@contextlib.contextmanager
def server_of(options: argparse.Namespace) -> Iterator[Address]:
    """The server that `add_server_options` describe, until the block ends.

    Raises:
        ServerError: the options do not fit together, or the server does not start.
    """
    if options.url is not None:
        if options.fake is not None:
            raise ServerError("--fake starts a server and --url names one that runs: give one of them")
        yield Address.of(options.url, options.metrics_url, options.http_url)
        return
    if options.fake is not None:
        config = fake_config(options.model, accelerator_curve(options.fake))
    else:
        config = ServerConfig(model=options.model.resolve(), provider=options.provider)
    more = tuple((name, folder.resolve()) for name, folder in options.also)
    config = replace(config, max_rows=options.max_rows, queue_limit=options.queue_limit, more=more)
    with started(config, options.log) as server:
        yield Address(server.grpc_url, server.metrics_url, server.http_url)


def named_folder(text: str) -> Named:
    """Of `name=folder`."""
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR, such as depth=out/depth")
    return name, Path(folder)


@contextlib.contextmanager
def started(config: ServerConfig, log: Path) -> Iterator[TritonServer]:
    """A server of a deployment, until the block ends; its messages go to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with TritonServer(config, log=log) as server:
        yield server


@contextlib.contextmanager
def running_server(url: str | None, models: Sequence[Named], provider: str, log: Path) -> Iterator[str]:
    """The gRPC address of the server at `url`, or of one that serves `models` until the block ends."""
    if url is not None:
        yield url
        return
    (name, model), *more = models
    config = ServerConfig(model=model.resolve(), name=name, more=tuple(more), provider=provider)
    with started(config, log) as server:
        yield server.grpc_url


@dataclass(frozen=True, slots=True)
class Answer:
    """A result and when it came, in seconds since the first request was sent."""

    result: Result
    seconds: float


def answers(url: str, requests: Sequence[Mapping[str, Value]], concurrency: int) -> Iterator[Answer]:
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
            yield from pool.map(ask, requests)
        finally:
            for client in clients:
                client.close()


def ask_all(url: str, requests: Sequence[Mapping[str, Value]], concurrency: int) -> list[Answer]:
    """All that `answers` gives; raises as it does."""
    return list(answers(url, requests, concurrency))


def rows_per_call(answers: Sequence[Answer]) -> float:
    """Mean rows of the UNet calls that served these answers, if nobody else was served meanwhile."""
    return mean_rows([answer.result.metadata["timing"] for answer in answers]) or 0.0


def mean_rows(timings: Sequence[Mapping[str, float]]) -> float | None:
    """The same, from what metadata says of timing; None for no answers."""
    calls = sum(timing["unet_calls"] for timing in timings)
    return float(sum(timing["unet_rows"] for timing in timings) / calls) if calls else None
