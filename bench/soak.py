"""Thousands of mixed requests, a share of them cancelled or malformed, on a server that is killed on the way.

Every request must be answered exactly once, or its connection closed; and a server that has become idle must hold no
more than it did when it was warm. Exit code 0 only if both are so.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from bench import leaks
from bench.reporting.measures import Measure, Plot, distribution, told
from bench.serving import fake_config
from bench.supervised import SupervisedServer
from bench.traffic import loops, scrape, tally
from bench.traffic.asking import Connections, Outcome, ask
from bench.traffic.latencies import milliseconds, percentile
from bench.traffic.mix import FACES, Asked, Mix
from server.async_client import AsyncClient
from server.deployment import SHARED_MEMORY
from server.errors import ServerError
from server.fields import Value
from server.repository import STREAM

# Quicker than any device, so that what is soaked is the host.
STEP_SECONDS = ((2, 0.002), (16, 0.006))
MIX = Mix(
    steps=(1, 2, 4, 8, 12),
    samplers=("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "heun", "unipc", "lms"),
    guidance=(1.0, 7.5),
    sizes=(128, 192),
    images=(1, 1, 1, 2),
    formats=("png", "jpeg", "webp", "raw"),
    faces=FACES,
    clients=8,
    leave_within=0.4,
    timeouts_ms=(*(0,) * 19, 150),
    preview_interval=2,
    name="soak",
)
WITNESS: dict[str, Value] = {"prompt": "a red circle on a blue background", "seed": 1, "num_inference_steps": 3}
# A client whose connection broke tries again after so long.
BACK_OFF_SECONDS = 1.0
IDLE_SECONDS = 20.0
# Units of what is held, in words.
HELD = {"mib": "MiB", "fds": "open files", "threads": "threads", "regions": "regions of shared memory"}
DRAIN_SECONDS = 10.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=32, help="requests open at a time")
    parser.add_argument("--kills", type=int, default=2, help="how often the stream's process is killed on the way")
    parser.add_argument("--samples", type=int, default=24, help="how often all clients pause to see what is held")
    parser.add_argument("--cancel-share", type=float, default=0.2, help="of the requests, 0 to 1")
    parser.add_argument("--malformed-share", type=float, default=0.05, help="of the requests, 0 to 1")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds; later answers count as lost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("out/soak.log"), help="file for the server's messages")


@dataclass
class Soak:
    """What has happened so far."""

    server: SupervisedServer
    limit: float
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[leaks.Sample] = field(default_factory=list)
    kills: int = 0
    complaints: list[str] = field(default_factory=list)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What became of the requests and of the server; `failures` is empty when all is well.

    Raises:
        ServerError: options that make no soak, or a server that does not come up.
    """
    if min(options.requests, options.concurrency, options.samples) < 1 or options.kills < 0:
        raise ServerError("--requests, --concurrency and --samples must be at least 1, --kills at least 0")
    config = fake_config(options.model, STEP_SECONDS)
    begun = time.monotonic()
    with SupervisedServer(config, options.log) as server:
        soak = Soak(server, options.limit)
        asyncio.run(_soaked(soak, options))
    if server.starts != soak.kills + 1:
        soak.complaints.append(f"the server was killed {soak.kills} times but started {server.starts} times")
    if server.drain_seconds > DRAIN_SECONDS:
        soak.complaints.append(f"the server took {server.drain_seconds:.1f} s to stop: a request was still open")
    if left := list(SHARED_MEMORY.glob(f"{server.server.prefix.rpartition('-')[0]}-*")):
        soak.complaints.append(f"shared memory was left behind: {', '.join(path.name for path in left)}")
    return _report(soak, options, time.monotonic() - begun)


async def _soaked(soak: Soak, options: argparse.Namespace) -> None:
    mix = replace(MIX, cancel_share=options.cancel_share, malformed_share=options.malformed_share, seed=options.seed)
    first = await _witness(soak)
    requests = mix.requests(options.requests)
    size = -(-options.requests // options.samples)
    # Early, so that most requests are served by one process, whose growth then shows.
    kills = {1 + n * max(1, options.samples // 8) for n in range(options.kills)}
    part = 0
    while batch := list(islice(requests, size)):
        await _part(soak, batch, options.concurrency, kill=part in kills)
        part += 1
    if await _witness(soak) != first:
        soak.complaints.append("the same request gave another picture at the end than at the beginning")


async def _witness(soak: Soak) -> list[bytes]:
    """What a certain request gives."""
    async with AsyncClient(soak.server.server.grpc_url) as client:
        return (await client.generate(**WITNESS, output_format="raw")).images


async def _part(soak: Soak, batch: Sequence[Asked], concurrency: int, *, kill: bool) -> None:
    """Send some of the requests, killing the stream in the middle of them or not; then see what the server holds."""
    async with Connections(soak.server.server.grpc_url) as connections:
        to_send, to_kill = len(batch), kill

        async def send(asked: Asked, intended: float) -> Outcome:
            nonlocal to_send, to_kill
            to_send -= 1
            if to_kill and to_send <= 2 * len(batch) // 3 and soak.server.kill(STREAM):
                to_kill = False
                soak.kills += 1
            outcome = await ask(connections, asked, intended, soak.limit)
            if outcome.status == "disconnected":
                await asyncio.sleep(BACK_OFF_SECONDS)
            return outcome

        soak.outcomes += await loops.closed_loop(iter(batch), concurrency, send)
        if soak.kills:
            await asyncio.to_thread(soak.server.wait_ready, soak.kills + 1)
        jobs = await _until_idle(soak.server.server.metrics_url)
        if jobs is None:
            soak.complaints.append(
                f"no metrics {IDLE_SECONDS:.0f} s after the last of {len(soak.outcomes)} requests ended"
            )
            return
        if any(jobs.values()):
            soak.complaints.append(f"{jobs} {IDLE_SECONDS:.0f} s after the last of {len(soak.outcomes)} requests ended")
        soak.samples.append(_sample(soak, jobs))


async def _until_idle(metrics_url: str) -> dict[str, float] | None:
    """Jobs that the server says it has, when there are none, or after `IDLE_SECONDS`; None if it says nothing."""
    end = time.monotonic() + IDLE_SECONDS
    jobs = None
    while time.monotonic() < end:
        # What the server says is up to two seconds old.
        await asyncio.sleep(2.0)
        try:
            samples = scrape.read_metrics(metrics_url)
        except ServerError:
            jobs = None
            continue
        jobs = {f"{name} jobs": scrape.total(samples, name) for name in ("running", "waiting")}
        if not any(jobs.values()):
            break
    return jobs


def _sample(soak: Soak, jobs: dict[str, float]) -> leaks.Sample:
    held = {**jobs, **leaks.memory_holds(soak.server.shared_memory())}
    for name, process in soak.server.processes().items():
        held |= leaks.process_holds(name, process.pid)
    return leaks.Sample(soak.server.starts, len(soak.outcomes), held)


def _report(soak: Soak, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    outcomes = soak.outcomes
    asked = [outcome.asked for outcome in outcomes]
    wrong = tally.unaccounted(asked, outcomes, broken=soak.kills > 0)
    if len(outcomes) != options.requests:
        wrong.append(f"{options.requests} requests were to be sent, {len(outcomes)} have an outcome")
    grown = leaks.growth(leaks.of_last_start(soak.samples))
    failures = [*soak.complaints, *wrong, *leaks.leaks(grown)]
    return {
        "failures": failures[:20],
        "failure_count": len(failures),
        "outcomes": dict(Counter(outcome.status for outcome in outcomes)),
        "endings": dict(Counter(one.ending for one in asked)),
        "malformed": sum(one.malformed for one in asked),
        "kills": soak.kills,
        "starts": soak.server.starts,
        "seconds_until_ready_again": [round(seconds, 2) for seconds in soak.server.down_seconds],
        "requests_per_second": round(len(outcomes) / tally.span(outcomes), 2),
        "latency_ms": milliseconds([o.seconds for o in outcomes if o.status == "ok"]),
        "drain_seconds": round(soak.server.drain_seconds, 2),
        "held_after_warm_up": grown,
        "seconds": round(seconds, 1),
        "failures_by_words": tally.messages(outcomes),
        **told(_measures(soak, grown), _plots(soak)),
        "settings": {"requests": options.requests, "concurrency": options.concurrency, "seed": options.seed},
    }


def _measures(soak: Soak, grown: Mapping[str, Mapping[str, float]]) -> list[Measure]:
    seconds = [outcome.seconds for outcome in soak.outcomes if outcome.status == "ok"]
    found = [
        Measure("requests, of all endings", len(soak.outcomes) / tally.span(soak.outcomes), "requests/s", "higher"),
        Measure("time to stop", soak.server.drain_seconds, "s", "lower"),
    ]
    for share in (0.5, 0.99) if seconds else ():
        found.append(Measure(f"latency p{100 * share:g}", 1e3 * percentile(seconds, share), "ms", "lower"))
    if soak.server.down_seconds:
        found.append(Measure.median("ready again after a kill", soak.server.down_seconds, "s", "lower"))
    for name, figures in grown.items():
        what, _, unit = name.rpartition(" ")
        if unit == "mib":
            # Pools vary, so neither way is an improvement; what is a leak is told by the failures.
            found.append(Measure(f"{what} memory for each 1,000 requests", figures["per_1000_requests"], "MiB"))
    return found


def _plots(soak: Soak) -> list[Plot]:
    """What the server held, by unit, and the latencies of what it answered without the slowest hundredth."""
    held: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for sample in soak.samples:
        for name, value in sample.held.items():
            what, _, unit = name.rpartition(" ")
            held.setdefault(unit, {}).setdefault(what, []).append((sample.requests, value))
    plots = [
        Plot(f"Held while idle: {HELD[unit]}", "curve", "requests sent", HELD[unit], lines)
        for unit, lines in held.items()
        if unit in HELD
    ]
    taken = sorted(1e3 * outcome.seconds for outcome in soak.outcomes if outcome.status == "ok")
    bins = distribution(taken[: max(1, round(0.99 * len(taken)))])
    return [*plots, Plot("Latency", "histogram", "ms", "requests", {"answered": bins})]
