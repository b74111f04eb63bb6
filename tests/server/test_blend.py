"""server.blend in a bucket's rows: what is kept of a latent comes back after every call, and nothing else moves."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from server.blend import PARTS, Blend, Blends
from server.fused import BLOCK
from server.job import Batch, Job
from server.levels import Choice
from server.rows import Array, BucketState
from server.samplers import sampler_table
from tests.fakes import BUCKET, make_job, trained

SHAPE = (4, 6, 5)


def noisy(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def half(shape: tuple[int, int, int] = SHAPE, seed: int = 1) -> Blend:
    """The first column of half the rows is between, the others are 0 or 1."""
    mask = np.ones(shape[1:], np.float32)
    mask[shape[1] // 2 :] = 0
    mask[:, 0] = 0.25
    return Blend(mask, noisy(seed, *shape), noisy(seed + 1, *shape))


def sampled(seed: int, blend: Blend | None, sampler: str = "euler", guidance_scale: float = 3.0) -> Job:
    table = sampler_table(sampler, Choice(steps=4), trained(steps_offset=1))
    job = make_job(table, context=seed / 10, seed=seed, guidance_scale=guidance_scale)
    job.work = replace(job.work, blend=blend)
    return job


def joined(*jobs: Job, shape: tuple[int, int, int] = SHAPE) -> BucketState:
    state = BucketState(4, shape)
    for job in jobs:
        state.join(job)
    return state


def turn(state: BucketState, *jobs: Job, output: Array | None = None, broken: Sequence[Job] = ()) -> None:
    """One call of these jobs."""
    made = state.call(Batch(BUCKET, jobs))
    sample = state.feeds(made)["sample"]
    state.draw(made)
    state.advance(made, np.tanh(sample) if output is None else output, broken)
    for job in jobs:
        job.step_index += 1


def bits(values: Array) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def test_what_is_kept_ends_as_it_came_and_what_is_repainted_as_without_a_mask() -> None:
    blend = half()
    blend.clean[0, 5, 3], blend.noise[0, 5, 3] = -0.0, 1
    job, free = sampled(1, blend, "euler_ancestral"), sampled(1, None, "euler_ancestral")
    state, other = joined(job), joined(free)
    for call in range(4):
        turn(state, job)
        turn(other, free)
        alpha, sigma = job.work.table.levels[call + 1]
        found, kept, painted = state.latent(job), blend.mask == 0, blend.mask == 1
        assert np.array_equal(found[:, kept], (alpha * blend.clean + sigma * blend.noise)[:, kept])
        assert np.array_equal(bits(found[:, painted]), bits(other.latent(free)[:, painted]))
    assert np.array_equal(bits(state.latent(job)[:, kept]), bits(blend.clean[:, kept]))
    assert job.work.table.levels[-1].tolist() == [1, 0]


@pytest.mark.parametrize("width", [BLOCK // 2 - 1, BLOCK // 2, BLOCK // 2 + 1, 3 * BLOCK + 7])
def test_a_latent_larger_than_a_block_is_blended_whole(width: int) -> None:
    shape = (2, 1, width)
    mask = np.random.default_rng(1).uniform(0, 1, shape[1:]).astype(np.float32)
    blend = Blend(mask, noisy(1, *shape), noisy(2, *shape))
    job = make_job(sampler_table("euler", Choice(steps=4), trained()), seed=5)
    free = make_job(job.work.table, seed=5)
    job.work = replace(job.work, blend=blend)
    state, other = joined(job, shape=shape), joined(free, shape=shape)
    turn(state, job)
    turn(other, free)
    alpha, sigma = job.work.table.levels[1]
    expected = mask * other.latent(free) + (1 - mask) * (alpha * blend.clean + sigma * blend.noise)
    np.testing.assert_allclose(state.latent(job), expected, rtol=1e-5, atol=1e-5)


def test_levels_of_nothing_but_noise_count_as_levels() -> None:
    """Zero terminal signal: alpha is 0."""
    blend = half()
    job = sampled(1, blend)
    levels = np.array([[0, 1], [0, 1], [0, 1], [0.5, 0.5], [1, 0]], np.float32)
    job.work = replace(job.work, table=replace(job.work.table, levels=levels))
    state = joined(job)
    turn(state, job)
    assert np.array_equal(state.latent(job)[:, 5, 1:], blend.noise[:, 5, 1:])


def test_neighbours_without_a_blend_are_not_touched() -> None:
    jobs = [sampled(1, half()), sampled(2, None), sampled(3, half(seed=7)), sampled(4, None)]
    state = joined(*jobs)
    for _ in range(3):
        turn(state, *jobs)
    for job, fresh in zip(jobs, [sampled(i + 1, job.work.blend) for i, job in enumerate(jobs)], strict=True):
        solo = joined(fresh)
        for _ in range(3):
            turn(solo, fresh)
        assert np.array_equal(bits(state.latent(job)), bits(solo.latent(fresh)))


def test_an_overflow_outside_the_mask_ends_there() -> None:
    blend = half()
    job = sampled(1, blend, guidance_scale=1.0)
    state = joined(job)
    output = np.ones((1, *SHAPE), np.float32)
    output[:, :, 5, 2] = np.inf
    turn(state, job, output=output)
    assert np.isfinite(state.latent(job)).all()


def test_a_job_that_is_not_moved_is_not_blended() -> None:
    """In a bucket without a free slot, where a wrong one would be a neighbour's."""
    job, healthy, fresh = sampled(1, half()), sampled(2, half()), sampled(2, half())
    state, other = BucketState(2, SHAPE), joined(fresh)
    state.join(job)
    state.join(healthy)
    before = state.latent(job)
    turn(state, job, healthy, broken=[job])
    turn(other, fresh)
    assert np.array_equal(state.latent(job), before)
    assert np.array_equal(state.latent(healthy), other.latent(fresh))


def test_previews_show_what_is_kept_without_noise() -> None:
    blend = half()
    job, free = sampled(1, blend), sampled(1, None)
    estimates = []
    for one in (job, free):
        state = joined(sampled(7, None), one)
        made = state.call(Batch(BUCKET, tuple(state.jobs)))
        estimates.append(state.estimate(made, np.tanh(state.feeds(made)["sample"]), 1))
    expected = blend.mask * estimates[1] + (1 - blend.mask) * blend.clean
    np.testing.assert_allclose(estimates[0], expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(estimates[0][:, blend.mask == 0], blend.clean[:, blend.mask == 0])
    assert not np.array_equal(estimates[0], estimates[1])


def test_a_blend_follows_its_job_to_another_slot() -> None:
    blends = [half(seed=seed) for seed in (1, 11, 21)]
    jobs = [sampled(i, blend) for i, blend in enumerate(blends)]
    state = joined(*jobs, sampled(3, None))
    state.leave(jobs[0])
    last = state.jobs[0]
    assert last.work.blend is None, "a job without a blend is now where one was"
    free = state.latent(last)
    state.leave(jobs[1])
    assert [job.slot for job in state.jobs] == [0, 1]
    assert jobs[2].slot == 1
    turn(state, *state.jobs, output=np.zeros((4, *SHAPE), np.float32))
    alpha, sigma = jobs[2].work.table.levels[1]
    kept = blends[2].mask == 0
    expected = (alpha * blends[2].clean + sigma * blends[2].noise)[:, kept]
    assert np.array_equal(state.latent(jobs[2])[:, kept], expected)
    assert np.array_equal(state.latent(last), free), "no noise was predicted: nothing moves"


def test_memory_is_there_only_while_a_job_blends() -> None:
    blends = Blends(4, SHAPE, 200)
    assert blends.lines.size == 0
    blends.join(0, half())
    blends.join(2, half())
    assert blends.lines.shape == (4, PARTS, 200)
    blends.leave(1, last=2)
    assert (0 in blends, 1 in blends, 2 in blends) == (True, True, False)
    blends.leave(0, last=1)
    assert (0 in blends, 1 in blends) == (True, False)
    blends.leave(0, last=0)
    assert blends.lines.size == 0


def test_a_call_of_jobs_that_do_not_blend_has_no_levels() -> None:
    job, free = sampled(1, half()), sampled(2, None)
    blends = Blends(4, SHAPE, 200)
    steps = np.zeros(1, np.int64)
    job.slot, free.slot = 0, 1
    assert blends.levels([job], steps) is None
    blends.join(0, half())
    assert blends.levels([free], steps) is None
    levels = blends.levels([free, job], np.array([0, 2]))
    assert levels is not None
    assert levels.tolist() == [[0, 0], job.work.table.levels[3].tolist()]


def test_nothing_of_a_job_is_kept_alive_when_it_has_left() -> None:
    job, stays = sampled(1, half()), sampled(2, None)
    for one in (job, stays):
        one.work = replace(one.work, start=noisy(1, *SHAPE), extra=noisy(2, 3, *SHAPE[1:]), label=1)
    assert job.work.blend is not None
    brought = (job.work.start, job.work.extra, job.work.blend.mask, job.work.blend.clean, job.work.blend.noise)
    left = [weakref.ref(values) for values in brought if values is not None]
    state = BucketState(4, SHAPE, (), extra_channels=3, labelled=True)
    state.join(job)
    state.join(stays)
    made = state.call(Batch(BUCKET, (job, stays)))
    state.advance(made, state.feeds(made)["sample"][:, :4].copy())
    state.leave(job)
    del job, one, brought, made
    gc.collect()
    assert [ref() for ref in left] == [None] * 5


def test_a_bucket_without_jobs_keeps_no_embeddings() -> None:
    job = sampled(1, None)
    context = weakref.ref(job.condition.positives[0])
    state = joined(job)
    turn(state, job)
    state.leave(job)
    del job
    gc.collect()
    assert context() is None
