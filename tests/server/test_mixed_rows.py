"""server.rows with jobs of every task in one bucket, held against plain numpy in double precision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.blend import Blend
from server.conditioning import Condition
from server.job import Batch, Job
from server.levels import Choice
from server.noise import TorchGenerator
from server.rows import Array, BucketState
from server.samplers import sampler_table
from tests.fakes import BUCKET, TableRun, make_job, trained

SHAPE = (4, 5, 3)
CAPACITY = 5
SAMPLERS = ("euler", "euler_ancestral", "ddim", "dpmpp_2m", "heun", "unipc")
# Channels beside the latent and whether rows are labelled: the plain UNet, inpainting, depth, the upscaler.
UNETS = {"plain": (0, False), "inpainting": (5, False), "depth": (1, False), "upscaler": (3, True)}
Numbers = npt.NDArray[Any]


def network(feeds: Mapping[str, Numbers]) -> Numbers:
    """Depends on each of a row's inputs, and on no other row."""
    sample = feeds["sample"]
    drive = sample[:, : SHAPE[0]] * sample.dtype.type(1.5)
    for channel in range(SHAPE[0], sample.shape[1]):
        drive = drive - sample[:, channel : channel + 1] / sample.dtype.type(channel)
    level = feeds["timestep"] / sample.dtype.type(1000)
    if "class_labels" in feeds:
        level = level + feeds["class_labels"].astype(sample.dtype) / sample.dtype.type(512)
    drive = drive + (level - feeds["encoder_hidden_states"][:, 1, 2]).reshape(-1, 1, 1, 1)
    output: Numbers = drive / (1 + np.abs(drive))
    return output


def noisy(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def blend(seed: int, shape: tuple[int, int, int] = SHAPE) -> Blend:
    """A mask of zeros, ones and what is between."""
    mask = np.clip(np.random.default_rng(seed).uniform(-0.5, 1.5, shape[1:]), 0, 1).astype(np.float32)
    return Blend(mask, noisy(seed + 1, *shape), noisy(seed + 2, *shape))


def member(number: int, unet: str) -> Job:
    """Job `number` of a bucket of this UNet; the same whenever it is asked for."""
    rng = np.random.default_rng(number)
    choice = Choice(kind="karras" if number % 2 else "normal", steps=int(rng.integers(3, 9)))
    table = sampler_table(SAMPLERS[number % len(SAMPLERS)], choice, trained(steps_offset=1))
    scale = 1.0 if number % 3 == 1 else 4.5
    job = make_job(table, number / 10, seed=number, guidance_scale=scale, guidance_rescale=0.4 * (number % 4 == 2))
    channels, labelled = UNETS[unet]
    job.work = replace(
        job.work,
        start=noisy(number, *SHAPE) if number % 5 < 2 else None,
        extra=noisy(number + 1, channels, *SHAPE[1:]) if channels else None,
        label=10 * number + 1 if labelled else None,
        blend=blend(number) if number % 2 == 0 else None,
    )
    if number % 4 == 3:
        compose(job, number)
    return job


def compose(job: Job, seed: int) -> None:
    """Give a job three positives."""
    states = tuple(noisy(seed + i, 2, 3) for i in range(3))
    condition = Condition(states, noisy(seed + 3, 2, 3), (3.0, -0.5, 1.5))
    job.work = replace(job.work, conditions=(condition,) * job.calls, reserved=condition.rows)


class Reference:
    """One job alone in double precision, a formula a line."""

    def __init__(self, job: Job) -> None:
        self.work = job.work
        self.share = job.request.guidance_rescale
        self.noise = TorchGenerator(job.request.seed)
        first = job.work.start
        if first is None:
            first = self.noise.normal(SHAPE) * np.float32(job.work.table.initial_scale)
        self.run = TableRun(job.work.table, first.astype(np.float64))

    @property
    def latent(self) -> Numbers:
        return self.run.x

    def output(self, states: Array) -> Numbers:
        """Of the network in the row of these embeddings."""
        extra = np.zeros((0, *SHAPE[1:])) if self.work.extra is None else self.work.extra
        feeds = {
            "sample": np.concatenate([self.run.input, extra])[None],
            "timestep": np.array([self.run.timestep]),
            "encoder_hidden_states": states[None].astype(np.float64),
        }
        if self.work.label is not None:
            feeds["class_labels"] = np.array([self.work.label])
        row: Numbers = network(feeds)[0]
        return row

    def guided(self) -> Numbers:
        condition = self.work.conditions[self.run.calls]
        positives = [self.output(states) for states in condition.positives]
        if condition.negative is None:
            return positives[0]
        negative = self.output(condition.negative)
        m = negative + sum(s * (p - negative) for s, p in zip(condition.scales, positives, strict=True))
        ratio = positives[0].std(ddof=1) / m.std(ddof=1)
        result: Numbers = m * (self.share * ratio + 1 - self.share)
        return result

    def advance(self) -> None:
        call, m = self.run.calls, self.guided()
        self.run.advance(m, self.noise.normal(SHAPE) if self.work.table.draws[call] else None)
        blend = self.work.blend
        if blend is not None:
            alpha, sigma = self.work.table.levels[call + 1].astype(np.float64)
            known = alpha * blend.clean + sigma * blend.noise
            self.run.x = blend.mask * self.run.x + (1 - blend.mask) * known


def turn(state: BucketState, batch: Batch) -> None:
    """One call; what the network gives for padding is spoilt."""
    made = state.call(batch)
    output = network(state.feeds(made))
    output[batch.size :] = np.nan
    state.draw(made)
    state.advance(made, output)
    for job in batch.jobs:
        job.step_index += 1


def alone(number: int, unet: str) -> list[Array]:
    """The latents of a job after each of its calls."""
    job = member(number, unet)
    state = BucketState(1, SHAPE, (), *UNETS[unet])
    state.join(job)
    found = []
    while job.step_index < job.calls:
        turn(state, Batch(BUCKET, (job,)))
        found.append(state.latent(job))
    return found


Moved = Callable[[int, Job, Array], None]


def crowd(unet: str, seed: int, batch_sizes: Sequence[int], moved: Moved) -> set[int]:
    """Random jobs come, are in every other call, and go, some of them early; gives those that came to their end."""
    rng = np.random.default_rng(seed)
    state = BucketState(CAPACITY, SHAPE, batch_sizes, *UNETS[unet])
    waiting = [(int(number), member(int(number), unet)) for number in rng.permutation(14)]
    running: dict[int, Job] = {}
    done = set()
    while waiting or running:
        while waiting and len(running) < CAPACITY and (not running or rng.random() < 0.5):
            number, job = waiting.pop()
            state.join(job)
            running[number] = job
        chosen = [number for number in running if rng.random() < 0.8]
        if not chosen:
            continue
        turn(state, Batch(BUCKET, tuple(running[number] for number in chosen)))
        for number in chosen:
            moved(number, running[number], state.latent(running[number]))
        for number, job in list(running.items()):
            ended = job.step_index == job.calls
            if ended or rng.random() < 0.02:
                done |= {number} if ended else set()
                state.leave(running.pop(number))
    assert state.jobs == []
    return done


@pytest.mark.parametrize("batch_sizes", [(), (4, 9, 25)], ids=["exact", "padded"])
@pytest.mark.parametrize("unet", UNETS)
def test_jobs_of_all_tasks_move_as_in_plain_numpy(unet: str, batch_sizes: Sequence[int]) -> None:
    references = {number: Reference(member(number, unet)) for number in range(14)}

    def compare(number: int, job: Job, latent: Array) -> None:
        references[number].advance()
        expected = references[number].latent
        np.testing.assert_allclose(latent, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max(), err_msg=str(number))

    assert len(crowd(unet, 1, batch_sizes, compare)) > 7


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("unet", UNETS)
def test_a_job_of_any_task_has_the_same_bits_alone_and_in_company(unet: str, seed: int) -> None:
    solo = {number: alone(number, unet) for number in range(14)}

    def compare(number: int, job: Job, latent: Array) -> None:
        assert np.array_equal(latent.view(np.uint32), solo[number][job.step_index - 1].view(np.uint32)), number

    assert len(crowd(unet, seed, (4, 9, 25), compare)) > 7
