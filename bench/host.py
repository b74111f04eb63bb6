"""What the server's own arithmetic costs: tables, prompts, and the moves of a batch between two UNet calls."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from bench.turns import turns
from server.conditioning import Condition
from server.job import Batch, Job
from server.levels import Choice
from server.noise import TorchGenerator
from server.prompt import parse_composition, parse_emphasis
from server.prompt_schedule import parse_schedule
from server.reply import Reply
from server.request import Limits, Request
from server.rows import BucketState
from server.samplers import METHODS, sampler_table
from server.schedule import TrainedSchedule
from server.work import Work

SIDE, STEPS, TOKENS, WIDTH = 64, 50, 77, 768
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "leading"}
MIX = ("euler", "euler_ancestral", "heun", "lms", "dpmpp_2m", "unipc", "deis", "ddim")
# 1,000 characters; alternation is left out, which is read anew for each of its texts.
PROMPT = 12 * "a (red:1.2) [circle], ((large)) star [square:ring:0.4] on a blue background, \\(plain\\) "
PROMPT = PROMPT[:1000]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--rows", type=int, default=16, help="rows of the batch; a guided image takes two")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Medians: milliseconds for tables and prompts, microseconds for a step of the batch."""
    trained = TrainedSchedule.from_config(SCHEDULE)
    choice = Choice(steps=STEPS)
    few = max(3, options.repeats // 20)
    tables = {name: 1e3 * _median(partial(sampler_table, name, choice, trained), few) for name in METHODS}
    batches = {
        "guided, euler": (("euler",), True),
        "guided, mixed": (MIX, True),
        "unguided, euler": (("euler",), False),
        "unguided, mixed": (MIX, False),
    }
    updates = {
        name: step_microseconds(samplers, options.rows, guided, trained, options.repeats)
        for name, (samplers, guided) in batches.items()
    }
    return {
        "table_ms": {name: round(value, 3) for name, value in tables.items()},
        "slowest_table_ms": max(tables.values()),
        "prompt_ms": 1e3 * _median(_parse, options.repeats),
        "step_us": updates,
        "mixed_minus_euler_us": {
            kind: updates[f"{kind}, mixed"]["total"] - updates[f"{kind}, euler"]["total"]
            for kind in ("guided", "unguided")
        },
        **turns(trained),
        "settings": {"rows": options.rows, "latent": [4, SIDE, SIDE], "steps": STEPS, "repeats": options.repeats},
    }


def _median(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _parse() -> None:
    for text, _ in parse_composition(PROMPT):
        for said in {said for _, said in parse_schedule(text, STEPS)}:
            parse_emphasis(said)


def _job(sampler: str, seed: int, guided: bool, trained: TrainedSchedule) -> Job:
    fields = {"prompt": "x", "seed": seed, "guidance_scale": 7.5 if guided else 1.0}
    request = Request.parse({name: [value] for name, value in fields.items()}, Limits(((512, 512),)))
    states = np.zeros((TOKENS, WIDTH), np.float32)
    condition = Condition((states,), states if guided else None, (request.guidance_scale,))
    table = sampler_table(sampler, Choice(steps=STEPS), trained)
    conditions = (condition,) * table.calls
    work = Work("", request.height, request.width, table, TorchGenerator(seed), conditions, condition.rows)
    return Job(request, 0, work, cast(Reply, None), 0.0)


def step_microseconds(
    samplers: Sequence[str], rows: int, guided: bool, trained: TrainedSchedule, repeats: int
) -> dict[str, float]:
    """Median cost of gathering a batch's inputs and of moving its latents; the UNet's output and noise are given."""
    count = rows // 2 if guided else rows
    jobs = [_job(samplers[i % len(samplers)], i, guided, trained) for i in range(count)]
    state = BucketState(count, (4, SIDE, SIDE))
    for job in jobs:
        state.join(job)
    batch = Batch(jobs[0].bucket, tuple(jobs))
    generator = np.random.default_rng(0)
    outputs = generator.standard_normal((rows, 4, SIDE, SIDE), np.float32)
    gathering, moving = [], []
    for turn in range(repeats):
        for job in jobs:
            job.step_index = 4 + turn % 40
        output = outputs.copy()
        started = time.perf_counter()
        call = state.call(batch)
        state.feeds(call)
        gathered = time.perf_counter()
        state.advance(call, output)
        moving.append(time.perf_counter() - gathered)
        gathering.append(gathered - started)
    gather, move = (1e6 * statistics.median(seconds) for seconds in (gathering, moving))
    return {"gather": gather, "move": move, "total": gather + move}
