"""Random load for the fake accelerator: when requests come, how many steps each has, and their jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.traffic.arrivals import Bursts
from bench.traffic.mix import Mix
from bench.traffic.mix_options import SAMPLERS
from server.conditioning import Condition
from server.errors import ServerError
from server.job import Job
from server.levels import Choice
from server.philox import PhiloxGenerator
from server.reply import Reply
from server.request import Limits, Request
from server.samplers import sampler_table
from server.schedule import TrainedSchedule
from server.work import Work

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "leading"}
TOKENS, WIDTH = 2, 4
LIMITS = Limits(((512, 512),), model="fake")


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in order of arrival.

    Attributes:
        arrivals: in seconds, at a mean rate of one a second.
        steps, samplers: of each.
        guided: whether each is; all are when empty.
    """

    arrivals: tuple[float, ...]
    steps: tuple[int, ...]
    samplers: tuple[str, ...]
    guided: tuple[bool, ...] = ()

    @classmethod
    def drawn(cls, steps: Sequence[int], count: int, seed: int) -> Load:
        """Poisson arrivals of requests with any of these steps and of `SAMPLERS`, all as likely."""
        generator = np.random.default_rng(seed)
        return cls(
            tuple(np.cumsum(generator.exponential(size=count)).tolist()),
            tuple(generator.choice(np.array(steps), count).tolist()),
            tuple(generator.choice(np.array(SAMPLERS), count).tolist()),
        )

    @classmethod
    def of(cls, mix: Mix, count: int, variation: float, seed: int) -> Load:
        """The requests of a mix, of which only steps, sampler and whether they are guided matter here.

        Args:
            variation: deviation of the times between arrivals over their mean; 1 is Poisson.
        """
        kinds = [asked.kind for asked in replace(mix, seed=mix.seed + seed).requests(count)]
        times = Bursts(1.0, variation).times(seed, count=count)
        guided = tuple(kind.guidance > 1 for kind in kinds)
        return cls(tuple(times), tuple(kind.steps for kind in kinds), tuple(kind.sampler for kind in kinds), guided)

    def jobs(self, rate: float) -> list[Job]:
        """Fresh jobs that come at so many requests a second, each from a client of its own."""
        guided = self.guided or (True,) * len(self.steps)
        kinds = zip(self.arrivals, self.steps, self.samplers, guided, strict=True)
        return [
            make_job(steps, sampler, seed, arrival / rate, str(seed), is_guided)
            for seed, (arrival, steps, sampler, is_guided) in enumerate(kinds)
        ]


class KeptNoise:
    """The noise of a seed, drawn once for all runs: every run begins with the same, and none of `SAMPLERS` draws again.

    Args:
        seed: of the generator.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        return _drawn(self._seed, shape)


@cache
def _drawn(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return PhiloxGenerator(seed).normal(shape)


class _Loud:
    """A sink that only failures reach, since what is measured ends with the latent."""

    def progress(self, event: Mapping[str, Any]) -> None:
        """Nobody asks for it."""

    def preview(self, event: Mapping[str, Any], data: bytes) -> None:
        """Nobody asks for it."""

    def image(self, event: Mapping[str, Any], data: bytes) -> None:
        """Nobody asks for it."""

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        raise ServerError("a request was answered before its latent was counted")

    def fail(self, error: ServerError) -> None:
        raise error


def _closed(reply: Reply) -> None:
    """Nobody waits for it."""


def calls_and_rows(steps: int, sampler: str, guided: bool) -> tuple[int, int]:
    """UNet calls of a job, and the rows of each."""
    work = _kind(steps, sampler, guided)[1]
    return work.table.calls, work.conditions[0].rows


@cache
def _kind(steps: int, sampler: str, guided: bool) -> tuple[Request, Work]:
    """What all jobs of this kind share; their noise is their own."""
    fields = {"prompt": "x", "seed": 0, "num_inference_steps": steps, "sampler": sampler}
    fields |= {} if guided else {"guidance_scale": 1.0}
    request = Request.parse({name: [value] for name, value in fields.items()}, LIMITS)
    table = sampler_table(sampler, Choice(steps=steps), TrainedSchedule.from_config(SCHEDULE))
    states = np.zeros((TOKENS, WIDTH), np.float32)
    condition = Condition((states,), states if guided else None, (request.guidance_scale,))
    conditions = (condition,) * table.calls
    height, width = request.height, request.width
    return request, Work(request.model, height, width, table, KeptNoise(0), conditions, condition.rows)


def make_job(steps: int, sampler: str, seed: int, arrival: float, client: str, guided: bool = True) -> Job:
    """A job with noise of its own."""
    common, shared = _kind(steps, sampler, guided)
    request = replace(common, client_id=client)
    work = replace(shared, noise=KeptNoise(seed))
    reply = Reply(request, _Loud(), _closed)
    job = Job(request, 0, work, reply, arrival)
    reply.jobs = (job,)
    return job
