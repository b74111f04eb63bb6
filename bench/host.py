"""What the server's own arithmetic costs: tables, prompts, and the moves of a batch between two UNet calls."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from bench.reporting.measures import Measure, Plot, distribution, told
from bench.turns import turns
from server.conditioning import Condition
from server.errors import ServerError
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
    parser.add_argument("--waiting", type=int, default=10_000, help="jobs that wait while the loop turns")
    parser.add_argument("--rows", type=int, default=16, help="rows of the batch; a guided image takes two")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Medians: milliseconds for tables and prompts, microseconds for a step of the batch.

    Raises:
        ServerError: numbers that are too small.
    """
    if options.repeats < 1 or options.rows < 2 or options.waiting < 1:
        raise ServerError("--repeats and --waiting must be at least 1, --rows at least 2")
    trained = TrainedSchedule.from_config(SCHEDULE)
    choice = Choice(steps=STEPS)
    few = max(3, options.repeats // 20)
    tables = {name: _milliseconds(partial(sampler_table, name, choice, trained), few) for name in METHODS}
    medians = {name: statistics.median(values) for name, values in tables.items()}
    batches = {
        "guided, euler": (("euler",), True),
        "guided, mixed": (MIX, True),
        "unguided, euler": (("euler",), False),
        "unguided, mixed": (MIX, False),
    }
    steps = {
        name: step_microseconds(samplers, options.rows, guided, trained, options.repeats)
        for name, (samplers, guided) in batches.items()
    }
    updates = {name: {part: statistics.median(values) for part, values in step.items()} for name, step in steps.items()}
    prompts = _milliseconds(_parse, options.repeats)
    loop, taken = turns(trained, options.waiting)
    totals = {name: step["total"] for name, step in steps.items()}
    slowest = max(medians, key=lambda name: medians[name])
    measures = [
        *(Measure.median(f"step of {options.rows} rows, {name}", us, "µs", "lower") for name, us in totals.items()),
        *(Measure.median(f"turn of the loop, {name}", us, "µs", "lower") for name, us in taken.items()),
        Measure(f"table of {STEPS} steps, median of the samplers", statistics.median(medians.values()), "ms", "lower"),
        Measure.median(f"table of {STEPS} steps, the slowest", tables[slowest], "ms", "lower"),
        Measure.median(f"reading a prompt of {len(PROMPT)} characters", prompts, "ms", "lower"),
    ]
    return {
        "table_ms": {name: round(value, 3) for name, value in medians.items()},
        "slowest_table_ms": medians[slowest],
        "prompt_ms": statistics.median(prompts),
        "step_us": updates,
        "mixed_minus_euler_us": {
            kind: updates[f"{kind}, mixed"]["total"] - updates[f"{kind}, euler"]["total"]
            for kind in ("guided", "unguided")
        },
        **loop,
        **told(measures, [_steps_plot(totals, options.rows), _turns_plot(loop["turn_us"])]),
        "settings": {"rows": options.rows, "latent": [4, SIDE, SIDE], "steps": STEPS, "repeats": options.repeats},
    }


def _milliseconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Of each of some calls."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - started))
    return taken


def _steps_plot(totals: Mapping[str, Sequence[float]], rows: int) -> Plot:
    # What an interruption of the process adds would leave no room for the rest.
    shown = {name: sorted(taken)[: max(1, int(0.98 * len(taken)))] for name, taken in totals.items()}
    lines = {name: distribution(taken) for name, taken in shown.items()}
    return Plot(f"Gather and move, {rows} rows, without the slowest 2 %", "histogram", "µs", "steps", lines)


def _turns_plot(turns_us: Mapping[str, float]) -> Plot:
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, taken in turns_us.items():
        rows, waiting = name.split(" rows, ")
        lines.setdefault(waiting, []).append((float(rows), taken))
    return Plot("A turn of the loop beside the UNet call", "curve", "rows", "µs", lines)


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
) -> dict[str, list[float]]:
    """Of each step: gathering a batch's inputs and moving its latents; the UNet's output and noise are given."""
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
        moving.append(1e6 * (time.perf_counter() - gathered))
        gathering.append(1e6 * (gathered - started))
    totals = [gather + move for gather, move in zip(gathering, moving, strict=True)]
    return {"gather": gathering, "move": moving, "total": totals}
