"""MLPerf's LoadGen drives the server: it issues the queries, takes the times, and says whether a run is valid.

The rules are those of Stable Diffusion XL in MLPerf Inference, as LoadGen's own configuration has them, scaled to the
checkpoint at hand; the result says what was scaled. A result is MLPerf's only when MLCommons has verified it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import signal
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.loadgen import accuracy, performance
from bench.loadgen.answering import Answering
from bench.loadgen.process import Mode, Play
from bench.loadgen.prompts import read_prompts
from bench.loadgen.rules import (
    GUIDANCE,
    NEGATIVE_PROMPT,
    SAMPLER,
    SCENARIOS,
    SEED,
    STEPS,
    Rules,
    Scenario,
    differences,
    official,
    settings_of,
)
from bench.serving import add_server_options, server_of
from server.errors import ServerError
from server.fields import Value

NOTE = "not verified by MLCommons; rules of SDXL, other checkpoint and settings as listed under scaled"
BURST = 32
ALONE = 3
# Of the images a second of a burst: a rate that random arrivals leave room for; more than can be, so that the queries
# that LoadGen makes up in advance last for the whole duration.
SERVER_SHARE, OFFLINE_SHARE, SINGLE_SHARE = 0.8, 1.2, 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    rules = parser.add_argument_group("rules", "where they differ from MLPerf's, the result says so")
    rules.add_argument(
        "--scenario", choices=SCENARIOS, required=True, help="one at a time, all at once, Poisson arrivals"
    )
    rules.add_argument("--scale", type=float, default=1.0, help="of the duration (600 s) and the number of samples")
    rules.add_argument("--duration", type=float, help="seconds at least, instead of the scaled")
    rules.add_argument("--samples", type=int, help="images at least, instead of the scaled; with --accuracy prompts")
    rules.add_argument("--latency", type=float, help="seconds that Server's percentile may take (20)")
    rules.add_argument("--percentile", type=float, help="that counts: 0.9 in SingleStream, 0.99 in Server")
    rules.add_argument("--target-qps", type=float, help="images a second; found by a burst of requests when absent")
    request = parser.add_argument_group("requests")
    request.add_argument("--prompts", type=Path, help="file with one on each line, or .tsv with a column caption")
    request.add_argument("--steps", type=int, default=STEPS)
    request.add_argument("--guidance", type=float, default=GUIDANCE)
    request.add_argument("--sampler", default=SAMPLER)
    request.add_argument("--negative-prompt", default=NEGATIVE_PROMPT)
    request.add_argument("--seed", type=int, default=SEED, help="of every image: the rules give all the same noise")
    request.add_argument("--size", type=int, help="side of the square pictures; the checkpoint's first when absent")
    run = parser.add_argument_group("run")
    run.add_argument("--accuracy", action="store_true", help="each prompt once, and keep the images to be scored")
    run.add_argument("--open", type=int, default=128, help="requests open at a time; LoadGen counts the waiting")
    run.add_argument("--limit", type=float, default=600.0, help="seconds; later answers count as failed")
    run.add_argument("--warm-up", type=int, default=16, help="requests sent before, all at once")
    run.add_argument("--folder", type=Path, default=Path("out/mlperf"), help="for LoadGen's logs, by scenario")
    run.add_argument("--require-valid", action="store_true", help="exit code 1 if LoadGen says INVALID")


@dataclass(frozen=True, slots=True)
class Run:
    """One run, decided.

    Attributes:
        rules, used: MLPerf's, and this run's.
        prompts: of which LoadGen chooses.
        target: images a second that LoadGen plans with; None until it is found.
        folder: for LoadGen's logs.
        images: for those of an accuracy run.
    """

    scenario: Scenario
    rules: Rules
    used: Rules
    prompts: list[str]
    folder: Path
    accuracy: bool = False
    target: float | None = None

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def play(self) -> Play:
        assert self.target is not None
        mode: Mode = "AccuracyOnly" if self.accuracy else "PerformanceOnly"
        settings = settings_of(self.scenario, self.used, self.target)
        return Play(self.scenario, mode, len(self.prompts), self.folder, settings)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """LoadGen's judgement and figures, or of an accuracy run the images and what the judge saw.

    Raises:
        ServerError: options that make no run, no LoadGen, no server, or one that refuses the requests.
    """
    planned = planned_run(options)
    (planned.images if planned.accuracy else planned.folder).mkdir(parents=True, exist_ok=True)
    forget(planned)
    with server_of(options) as address:
        return asyncio.run(measured(address.grpc, planned, options))


def forget(planned: Run) -> None:
    """Remove what an earlier run left, which must not pass for this one's when it ends early."""
    for file in [*planned.folder.glob("mlperf_log_*"), *planned.images.glob("[0-9]*.png")]:
        file.unlink()


def planned_run(options: argparse.Namespace) -> Run:
    """What the options describe.

    Raises:
        ServerError: a number that none can be, or prompts that cannot be read.
    """
    for name in ("scale", "duration", "samples", "latency", "target_qps", "open", "limit"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ServerError(f"--{name.replace('_', '-')} is {value}: give a number above 0")
    if options.percentile is not None and not 0 < options.percentile < 1:
        raise ServerError(f"--percentile is {options.percentile}: give a part of 1, as 0.99")
    if options.warm_up < 0:
        raise ServerError(f"--warm-up is {options.warm_up}: give 0 or more")
    if options.latency is not None and options.scenario != "Server":
        raise ServerError(f"--latency bounds Server, and {options.scenario} has no bound: leave it out")
    prompts = read_prompts(options.prompts)
    if options.accuracy:
        prompts = prompts[: options.samples]
    rules = official(options.scenario)
    given = {name: getattr(options, name) for name in ("duration", "samples", "latency", "percentile")}
    used = replace(
        rules.scaled(options.scale),
        prompts=len(prompts),
        steps=options.steps,
        guidance=options.guidance,
        sampler=options.sampler,
        negative_prompt=options.negative_prompt if options.guidance > 1 else "",
        **{name: value for name, value in given.items() if value is not None},
    )
    return Run(
        options.scenario, rules, used, prompts, options.folder / options.scenario, options.accuracy, options.target_qps
    )


def fields_of(options: argparse.Namespace) -> dict[str, Value]:
    """What every request has besides its prompt."""
    fields: dict[str, Value] = {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "sampler": options.sampler,
        "seed": options.seed,
    }
    fields |= {"negative_prompt": options.negative_prompt} if options.guidance > 1 else {}
    return fields | ({"height": options.size, "width": options.size} if options.size else {})


async def measured(url: str, planned: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, find a rate if none was given, and let LoadGen play."""
    requests = [{**fields_of(options), "prompt": prompt} for prompt in planned.prompts]
    pictures = planned.images if planned.accuracy else None
    async with Answering(url, requests, open_at_once=options.open, limit=options.limit, pictures=pictures) as answering:
        await answering.ask_all(spread(options.warm_up, planned))
        found = await found_rate(answering, planned) if planned.target is None else {}
        planned = replace(planned, target=planned.target or found["target_qps"])
        with interruptible(answering):
            await answering.play(planned.play)
    if planned.accuracy:
        result = accuracy.told_of(answering, planned.prompts, planned.folder)
    else:
        result = performance.told_of(answering, planned.scenario, planned.folder)
    if options.require_valid and result.get("valid") is False:
        result["failures"].append("LoadGen says INVALID: " + "; ".join(result["reasons"]))
    return {
        "scenario": planned.scenario,
        "mode": planned.play.mode,
        "target_qps": planned.target,
        **found,
        "rules": asdict(planned.used),
        "scaled": {"scale": options.scale, **differences(planned.rules, planned.used)},
        "logs": str(planned.folder),
        "note": NOTE,
        "partial": bool(answering.stopped),
        **result,
    }


def spread(count: int, planned: Run) -> list[int]:
    """So many prompts by their number, again from the first after the last."""
    return [number % len(planned.prompts) for number in range(count)]


async def found_rate(answering: Answering, planned: Run) -> dict[str, float]:
    """What the server can do, and what LoadGen is to plan with."""
    if planned.scenario == "SingleStream":
        seconds = statistics.median([await answering.ask_all([0]) for _ in range(ALONE)])
        return {"seconds_alone": seconds, "target_qps": SINGLE_SHARE / seconds}
    burst = BURST / await answering.ask_all(spread(BURST, planned))
    share = SERVER_SHARE if planned.scenario == "Server" else OFFLINE_SHARE
    return {"burst_images_per_second": burst, "target_qps": share * burst}


@contextlib.contextmanager
def interruptible(answering: Answering) -> Iterator[None]:
    """Have an interrupt keep what there is."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, answering.stop, "interrupted")
    except (ValueError, RuntimeError):
        # Not in the main thread, which alone hears of signals.
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
