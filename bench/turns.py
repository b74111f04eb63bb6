"""What a turn of the denoising loop costs the host beside the UNet call, and how near that is to the memory's speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engines.component import GREY
from server.admission import Admission
from server.checkpoints import Checkpoints
from server.conditioning import Condition
from server.config import ServerConfig
from server.job import Job
from server.levels import Choice
from server.loop import DenoiseLoop
from server.metrics import Metrics
from server.monitor import Monitor
from server.noise import TorchGenerator
from server.pipeline import Pipeline
from server.reply import Reply
from server.request import Limits, Request
from server.samplers import sampler_table
from server.schedule import TrainedSchedule
from server.scheduler import Scheduler
from server.warm_up import Curves
from server.work import Work

SIDE, CALLS = 64, 50
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "deis")
NAME, SIZE = "instant", (512, 512)
STATES = np.zeros((77, 768), np.float32)


class Deaf:
    """A client that listens to nothing."""

    def progress(self, event: Mapping[str, Any]) -> None:
        """Nobody looks."""

    def preview(self, event: Mapping[str, Any], data: bytes) -> None:
        """Nobody looks."""

    def image(self, event: Mapping[str, Any], data: bytes) -> None:
        """Nobody looks."""

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        """Nobody looks."""

    def fail(self, error: Exception) -> None:
        raise error


class Instant:
    """A pipeline whose UNet takes no time; keeps when it was called and when it answered."""

    def __init__(self, rows: int) -> None:
        self.output = np.random.default_rng(0).standard_normal((rows, 4, SIDE, SIDE), np.float32)
        self.called = 0.0
        self.name, self.limits, self.low_resolution = NAME, Limits((SIZE,), model=NAME), None
        self.extra_channels, self.labelled = 0, False
        self.spec = SimpleNamespace(preview=GREY, downscale=8)
        self.embedding_cache = (0, 0)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 4, SIDE, SIDE

    def denoise(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        return self.output


def turn_microseconds(rows: int, waiting: int, trained: TrainedSchedule) -> list[float]:
    """Of each turn: schedule, gather, guidance, update and emit for a call of guided jobs, while others wait."""
    checkpoints = Checkpoints([cast(Pipeline, Instant(rows))])
    config = ServerConfig(model=cast(Any, None), max_rows=rows, row_cap=rows)
    curves = Curves({NAME: (((2, 0.01), (rows, 0.02)), SIZE)}, row_cap=rows)
    admission = Admission(config, curves, time.monotonic)
    monitor = Monitor(checkpoints, admission, curves, rows, Metrics(), None, time.monotonic)
    loop = DenoiseLoop(
        checkpoints, Scheduler(rows, lambda bucket: curves(bucket.plot)), lambda job, latent, when: None, monitor
    )
    tables = [sampler_table(name, Choice(steps=CALLS), trained) for name in SAMPLERS]
    for i in range(rows // 2 + waiting):
        loop.submit([_job(tables[i % len(tables)], i)])
    loop.admit()
    seconds = []
    for _ in range(CALLS - 2):
        started = time.perf_counter()
        loop.step()
        seconds.append(time.perf_counter() - started)
    loop.close()
    return [1e6 * one for one in seconds[3:]]


def _job(table: Any, number: int) -> Job:
    fields = {"prompt": "x", "seed": number}
    request = Request.parse({name: [value] for name, value in fields.items()}, Limits((SIZE,), model=NAME))
    condition = Condition((STATES,), STATES, (request.guidance_scale,))
    conditions = (condition,) * table.calls
    work = Work(NAME, *SIZE, table, TorchGenerator(number), conditions, condition.rows)
    reply = Reply(request, Deaf(), lambda reply: None)
    reply.jobs = (Job(request, 0, work, reply, 0.0, due=float(number), seconds=0.01),)
    return reply.jobs[0]


def pass_microseconds(rows: int) -> float:
    """The floor: reading the latents and the UNet's output once and writing the latents and the next input once."""
    latents = np.ones((rows // 2, 4, SIDE, SIDE), np.float32)
    output = np.ones((rows, 4, SIDE, SIDE), np.float32)
    sample = np.ones_like(output)
    seconds = []
    for _ in range(200):
        started = time.perf_counter()
        np.add(output[: rows // 2], output[rows // 2 :], out=latents)
        np.copyto(sample[: rows // 2], latents)
        np.copyto(sample[rows // 2 :], latents)
        seconds.append(time.perf_counter() - started)
    return 1e6 * statistics.median(seconds)


def turns(trained: TrainedSchedule, crowd: int = 10_000) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Medians in microseconds by rows and waiting jobs, how many times the floor that is; and those of each turn."""
    taken = {
        f"{rows} rows, {waiting} waiting": turn_microseconds(rows, waiting, trained)
        for rows, waiting in ((16, 0), (16, crowd), (64, 0), (64, crowd))
    }
    found = {name: statistics.median(microseconds) for name, microseconds in taken.items()}
    floors = {rows: pass_microseconds(rows) for rows in (16, 64)}
    figures = {
        "turn_us": found,
        "one_pass_us": {str(rows): floor for rows, floor in floors.items()},
        "turn_over_one_pass": {str(rows): found[f"{rows} rows, 0 waiting"] / floor for rows, floor in floors.items()},
    }
    return figures, taken
