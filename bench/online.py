"""Load on a live server: so many requests at a time, or so many a second at random times, and what became of them.

All requests share one event loop (`grpc.aio`) and a few connections, so that hundreds may be open at once. Latency
counts from when a request was to be sent, so that a client that falls behind does not flatter the server.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from bench.serving import Address, add_server_options, mean_rows, server_of
from bench.traffic import loops, scrape, tally
from bench.traffic.asking import Connections, Outcome, ask
from bench.traffic.latencies import milliseconds
from bench.traffic.mix import FACES, Asked, Face, Kind, Mix, kind_fields
from server.errors import ServerError

PROMPT = "a red circle on a blue background"
WARM_UP_SEED = 1_000_003
# By which the server's metrics lag behind.
METRICS_SECONDS = 2.0
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Load:
    """How a mix is sent.

    Attributes:
        concurrency: requests open at a time; not with a rate.
        rate: a second, at random times.
        count, seconds: where the load ends; at least one of them.
        warm_up: requests that are sent before and not counted.
        repeats: of each kind of request alone.
        limit: seconds after which a request without an answer is lost.
    """

    concurrency: int | None = 16
    rate: float | None = None
    count: int | None = 200
    seconds: float | None = None
    warm_up: int = 16
    repeats: int = 3
    connections: int = 4
    limit: float = 120.0


def listed(convert: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """Of an option's text: values between commas."""

    def values(text: str) -> tuple[Item, ...]:
        return tuple(convert(part.strip()) for part in text.split(","))

    values.__name__ = f"list of {convert.__name__}"
    return values


def add_options(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    mix = parser.add_argument_group("requests", "where values are listed with commas, each is as likely")
    mix.add_argument("--face", choices=(*FACES, "both"), default="unary", help="the unary model, the stream, or both")
    mix.add_argument("--steps", type=listed(int), default=(20,), help="denoising steps, as 4,20,50")
    mix.add_argument("--samplers", type=listed(str), default=("euler",), help="as euler,dpmpp_2m,ddim")
    mix.add_argument("--guidance", type=listed(float), default=(7.5,), help="1 or less takes one row, more takes two")
    mix.add_argument("--size", type=listed(int), default=(128,), help="sides of square pictures, in pixels")
    mix.add_argument("--images", type=listed(int), default=(1,), help="of one request")
    mix.add_argument("--format", type=listed(str), default=("png",), help="png, jpeg, webp, raw")
    mix.add_argument("--clients", type=int, default=0, help="client ids that share the load; 0 sends none")
    mix.add_argument("--cancel-share", type=float, default=0.0, help="of the requests, 0 to 1")
    mix.add_argument("--cancel-within", type=float, default=1.0, help="seconds after sending in which those end")
    mix.add_argument("--malformed-share", type=float, default=0.0, help="of the requests, 0 to 1")
    mix.add_argument("--timeout-ms", type=int, default=0, help="that each request allows; 0 is for ever")
    mix.add_argument("--preview-interval", type=int, default=0, help="steps between previews, on streams")
    mix.add_argument("--seed", type=int, default=0, help="of requests and arrivals")
    load = parser.add_argument_group("load")
    how = load.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=int, help="requests open at a time (16 unless there is a rate)")
    how.add_argument("--rate", type=float, help="requests a second, at random times (Poisson)")
    load.add_argument("--requests", type=int, help="how many (200 unless there is a duration)")
    load.add_argument("--duration", type=float, help="seconds in which requests are sent")
    load.add_argument("--warm-up", type=int, default=16, help="requests sent before, not counted")
    load.add_argument("--repeats", type=int, default=3, help="of each kind alone, to learn its latency")
    load.add_argument("--connections", type=int, default=4)
    load.add_argument("--limit", type=float, default=120.0, help="seconds; later answers count as lost")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Latencies by outcome, throughput, goodput, and what the server says of itself.

    Raises:
        ServerError: options that make no load, no server, or one that refuses a request of the mix alone.
    """
    mix, load = mix_of(options), load_of(options)
    with server_of(options) as address:
        return asyncio.run(measured(address, mix, load))


def mix_of(options: argparse.Namespace) -> Mix:
    """The mix that the options describe.

    Raises:
        ServerError: shares that are none.
    """
    shares = options.cancel_share, options.malformed_share
    if min(shares) < 0 or sum(shares) > 1:
        raise ServerError(f"--cancel-share and --malformed-share are {shares[0]} and {shares[1]}: give parts of 1")
    return Mix(
        steps=options.steps,
        samplers=options.samplers,
        guidance=options.guidance,
        sizes=options.size,
        images=options.images,
        formats=options.format,
        faces=FACES if options.face == "both" else (options.face,),
        clients=options.clients,
        cancel_share=options.cancel_share,
        malformed_share=options.malformed_share,
        leave_within=options.cancel_within,
        timeouts_ms=(options.timeout_ms,),
        preview_interval=options.preview_interval,
        seed=options.seed,
    )


def load_of(options: argparse.Namespace) -> Load:
    """The load that the options describe.

    Raises:
        ServerError: a number that is too small.
    """
    for name in ("concurrency", "rate", "requests", "duration", "connections", "limit"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ServerError(f"--{name} is {value}: give a number above 0")
    return Load(
        concurrency=None if options.rate else options.concurrency or 16,
        rate=options.rate,
        count=options.requests or (None if options.duration else 200),
        seconds=options.duration,
        warm_up=max(0, options.warm_up),
        repeats=max(1, options.repeats),
        connections=options.connections,
        limit=options.limit,
    )


async def measured(address: Address, mix: Mix, load: Load) -> dict[str, Any]:
    """Warm up, ask for each kind alone, then send the load."""
    async with Connections(address.grpc, load.connections) as connections:

        async def send(asked: Asked, intended: float) -> Outcome:
            return await ask(connections, asked, intended, load.limit)

        calm = replace(mix, cancel_share=0.0, malformed_share=0.0, timeouts_ms=(0,), seed=WARM_UP_SEED, name="warm-up")
        await loops.closed_loop(calm.requests(load.warm_up), load.concurrency or 16, send)
        alone = {kind: await latency_alone(connections, kind, mix.faces[0], load) for kind in mix.kinds}
        before = await counted(address)
        outcomes = await sent(mix, load, send)
        after = await counted(address)
    figures = report_of(outcomes, alone)
    if before is not None and after is not None:
        figures["server_counted"] = scrape.grown(before, after)
    return {**figures, "settings": {"mix": asdict(mix), "load": asdict(load)}}


async def counted(address: Address) -> dict[str, float] | None:
    """The server's metrics once they are up to date, where they can be read."""
    if address.metrics is None:
        return None
    await asyncio.sleep(METRICS_SECONDS)
    return scrape.read_metrics(address.metrics)


async def latency_alone(connections: Connections, kind: Kind, face: Face, load: Load) -> float:
    """Median seconds of a kind of request on a server that does nothing else.

    Raises:
        ServerError: it was not answered with images.
    """
    seconds = []
    for number in range(load.repeats):
        fields = {**kind_fields(kind), "prompt": PROMPT, "seed": number, "request_id": f"alone-{number}"}
        outcome = await ask(connections, Asked(number, fields, kind, face), limit=load.limit)
        if outcome.status != "ok":
            raise ServerError(f"a request alone on the server ended as {outcome.status}: {outcome.message}")
        seconds.append(outcome.seconds)
    return statistics.median(seconds)


async def sent(mix: Mix, load: Load, send: loops.Send) -> list[Outcome]:
    """The outcomes of the whole load.

    Raises:
        ServerError: it has no request.
    """
    if load.rate is None:
        assert load.concurrency is not None
        return await loops.closed_loop(mix.requests(load.count), load.concurrency, send, load.seconds)
    times = loops.poisson_times(load.rate, mix.seed, count=load.count, seconds=load.seconds)
    if not times:
        raise ServerError(f"no request comes in {load.seconds} s at {load.rate} a second: give a longer --duration")
    return await loops.open_loop(mix.requests(len(times)), times, send)


def report_of(outcomes: Sequence[Outcome], alone: dict[Kind, float]) -> dict[str, Any]:
    """Every figure of a load."""
    previews = [o.first_preview - o.intended for o in outcomes if o.first_preview is not None]
    rows = mean_rows([o.timing for o in outcomes if o.timing])
    steps = sorted({kind[0] for kind in alone})
    return {
        "outcomes": dict(Counter(outcome.status for outcome in outcomes)),
        "images_per_second": round(tally.images_per_second(outcomes), 3),
        "goodput_images_per_second": tally.goodputs(outcomes, alone),
        "latency_ms": tally.latencies(outcomes),
        "latency_ms_by_steps": tally.by_steps(outcomes),
        "alone_ms_by_steps": {
            str(n): round(1e3 * statistics.mean(s for kind, s in alone.items() if kind[0] == n), 3) for n in steps
        },
        "mean_rows_per_unet_call": None if rows is None else round(rows, 3),
        "first_preview_ms": milliseconds(previews),
        "late_sending_ms": milliseconds([outcome.sent - outcome.intended for outcome in outcomes]),
        "seconds": round(tally.span(outcomes), 3),
        "failures_by_words": tally.messages(outcomes),
        "unaccounted": tally.unaccounted([o.asked for o in outcomes], outcomes, bounded=True),
    }
