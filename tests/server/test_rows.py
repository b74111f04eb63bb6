"""server.rows with a network that treats every row alone: what a job gets does not depend on its company."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.conditioning import Condition
from server.fused import BLOCK
from server.job import Batch, Job
from server.levels import Choice
from server.noise import TorchGenerator
from server.rows import Array, BucketState, padded_size
from server.samplers import sampler_table
from server.table import A1, C_IN, COLUMNS, HISTORY, B, Table, V
from tests.fakes import BUCKET, TableRun, make_job, trained

SHAPE = (4, 5, 3)
Spoil = Callable[[Array, Batch], None]


def network(feeds: Mapping[str, npt.NDArray[Any]]) -> Array:
    """Depends on each of a row's inputs, and on no other row; exact arithmetic only, so equal rows give equal bits."""
    level = (feeds["timestep"] / np.float32(1000)).reshape(-1, 1, 1, 1)
    context = feeds["encoder_hidden_states"][:, 1, 2].reshape(-1, 1, 1, 1)
    drive = feeds["sample"] * np.float32(1.5) + level - context
    output: Array = drive / (1 + np.abs(drive))
    return output


def sampled(sampler: str, schedule: str, steps: int, guidance_scale: float, seed: int) -> Job:
    """A fresh job with a real sampler's table."""
    table = sampler_table(sampler, Choice(kind=schedule, steps=steps), trained(steps_offset=1))
    return make_job(table, context=seed / 10, seed=seed, guidance_scale=guidance_scale)


def batch_of(*jobs: Job) -> Batch:
    return Batch(BUCKET, jobs)


def joined(*jobs: Job, batch_sizes: Sequence[int] = ()) -> BucketState:
    state = BucketState(8, SHAPE, batch_sizes)
    for job in jobs:
        state.join(job)
    return state


def call(state: BucketState, batch: Batch, spoil: Spoil | None = None) -> None:
    """One turn of the loop."""
    made = state.call(batch)
    output = network(state.feeds(made))
    if spoil is not None:
        spoil(output, batch)
    state.draw(made)
    state.advance(made, output)
    for job in batch.jobs:
        job.step_index += 1


def trails(
    arrivals: Sequence[tuple[int, Job]], batch_sizes: Sequence[int] = (), spoil: Spoil | None = None
) -> list[list[Array]]:
    """Every latent of every job; each joins before the call of its number and leaves when it is done."""
    state = BucketState(8, SHAPE, batch_sizes)
    found: dict[Job, list[Array]] = {job: [] for _, job in arrivals}
    running: list[Job] = []
    for turn in range(100):
        for job in (job for at, job in arrivals if at == turn):
            state.join(job)
            running.append(job)
        if running:
            call(state, batch_of(*running), spoil)
        for job in running:
            found[job].append(state.latent(job))
        for job in [job for job in running if job.step_index == job.calls]:
            state.leave(job)
            running.remove(job)
    assert all(len(latents) == job.calls for job, latents in found.items())
    assert not state.jobs
    return list(found.values())


def assert_same_bits(one: Sequence[Array], other: Sequence[Array]) -> None:
    assert len(one) == len(other)
    for call_, (a, b) in enumerate(zip(one, other, strict=True)):
        assert a.dtype == b.dtype == np.float32
        assert np.array_equal(a.view(np.uint32), b.view(np.uint32)), call_


COMPANY: tuple[tuple[str, str, int, float, int], ...] = (
    ("euler", "normal", 6, 7.5, 1),
    ("euler", "karras", 11, 1.0, 2),
    ("euler_ancestral", "normal", 7, 3.0, 3),
    ("euler_ancestral", "karras", 9, 1.0, 4),
    ("ddim", "normal", 5, 12.0, 5),
    ("ddim", "karras", 8, 0.0, 6),
    ("dpmpp_2m", "normal", 10, 1.5, 7),
    ("dpmpp_2m", "karras", 12, 1.0, 8),
)


@pytest.mark.parametrize("subject", range(len(COMPANY)), ids=lambda i: "-".join(map(str, COMPANY[i][:4])))
def test_a_job_has_the_same_bits_alone_in_company_and_joining_in_mid_flight(subject: int) -> None:
    alone = trails([(0, sampled(*COMPANY[subject]))])[0]
    assert all(np.isfinite(latent).all() for latent in alone)
    together = trails([(0, sampled(*one)) for one in COMPANY])[subject]
    assert_same_bits(alone, together)
    late = trails([(3 if i == subject else 0, sampled(*one)) for i, one in enumerate(COMPANY)])[subject]
    assert_same_bits(alone, late)
    staggered = trails([(i * 5 % 8, sampled(*one)) for i, one in enumerate(COMPANY)])[subject]
    assert_same_bits(alone, staggered)


def test_jobs_differ_by_seed_prompt_and_guidance() -> None:
    """What the equalities above would hide if the network or the state ignored them."""
    plain = ("euler", "normal", 4, 7.5, 1)
    ends = [trails([(0, sampled(*one))])[0][-1] for one in (plain, (*plain[:4], 2), (*plain[:3], 7.0, 1))]
    other_prompt = sampled(*plain)
    condition_on(other_prompt, negative=np.full((2, 3), 9, np.float32))
    ends.append(trails([(0, other_prompt)])[0][-1])
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(ends) for b in ends[:i])


def condition_on(job: Job, **changes: Any) -> None:
    """Other embeddings for all calls of a job."""
    condition = replace(job.condition, **changes)
    job.work = replace(job.work, conditions=(condition,) * job.calls, reserved=condition.rows)


def spoil_padding(output: Array, batch: Batch) -> None:
    output[batch.size :] = np.nan


@pytest.mark.parametrize("batch_sizes", [(16,), (3, 6, 12), (1, 2, 4, 8, 16)])
def test_padding_rows_never_reach_a_job(batch_sizes: tuple[int, ...]) -> None:
    exact = trails([(i, sampled(*one)) for i, one in enumerate(COMPANY)])
    padded = trails([(i, sampled(*one)) for i, one in enumerate(COMPANY)], batch_sizes, spoil_padding)
    for one, other in zip(exact, padded, strict=True):
        assert_same_bits(one, other)


def broken() -> Job:
    job = sampled("dpmpp_2m", "normal", 4, 7.5, 9)
    condition_on(job, positives=(np.full((2, 3), np.nan, np.float32),))
    return job


def test_a_job_that_overflowed_harms_neither_its_neighbours_nor_the_next_in_its_slot() -> None:
    healthy = ("dpmpp_2m", "karras", 6, 4.0, 3)
    alone = trails([(0, sampled(*healthy))])[0]
    bad, neighbour, heir = trails([(0, broken()), (0, sampled(*healthy)), (4, sampled(*healthy))])
    assert np.isnan(bad[-1]).all()
    assert_same_bits(alone, neighbour)
    assert_same_bits(alone, heir)


def remembering_table(calls: int, seed: int) -> Table:
    """Random numbers in every column, memory only where there is some."""
    lines = np.random.default_rng(seed).uniform(-0.5, 0.5, (calls, len(COLUMNS)))
    lines[0, A1] = 0
    for age in range(1, HISTORY):
        lines[:age, B + age] = 0
    return Table.of(lines, 1.7, range(calls))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_latents_move_as_the_columns_of_a_table_say(guidance_scale: float) -> None:
    """Nine calls: each kept output is used, outlives three calls and is overwritten, twice over."""
    job = make_job(remembering_table(9, seed=1), seed=5, guidance_scale=guidance_scale)
    neighbour = make_job(remembering_table(9, seed=2), seed=6, guidance_scale=2.5)
    state = joined(neighbour, job)
    draws = TorchGenerator(5)
    run = TableRun(job.work.table, draws.normal(SHAPE).astype(np.float64) * np.float64(np.float32(1.7)))
    np.testing.assert_allclose(state.latent(job), run.x, rtol=1e-6)
    batch = batch_of(neighbour, job)
    for _ in range(9):
        feeds = state.feeds(state.call(batch))
        output = network(feeds).astype(np.float64)
        np.testing.assert_allclose(feeds["sample"][1], run.input, rtol=1e-4, atol=1e-5)
        assert feeds["timestep"][1] == pytest.approx(run.timestep, rel=1e-6)
        m = output[1] if guidance_scale == 1 else output[3] + guidance_scale * (output[1] - output[3])
        call(state, batch)
        run.advance(m, draws.normal(SHAPE))
        np.testing.assert_allclose(state.latent(job), run.x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "sizes", "padded"),
    [(1, (), 1), (13, (), 13), (1, (2, 4, 8), 2), (4, (2, 4, 8), 4), (5, (8, 2, 4), 8), (8, [2, 4, 8], 8)],
)
def test_a_batch_is_padded_to_the_next_size_that_the_engine_takes(size: int, sizes: Sequence[int], padded: int) -> None:
    assert padded_size(size, sizes) == padded


def test_more_rows_than_the_engine_takes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"9 rows .* largest batch size of the engine, 8"):
        padded_size(9, (2, 8, 4))


def rows(*values: float) -> Array:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def passing_table(calls: int) -> Table:
    """The next latent is the guided output itself."""
    lines = np.zeros((calls, len(COLUMNS)))
    lines[:, [C_IN, V, B]] = 1
    return Table.of(lines, 1.0, ())


def composed(scales: Sequence[float], negative: bool, rescale: float = 0.0) -> Job:
    """A job whose positives have these scales."""
    job = make_job(passing_table(3), guidance_scale=7.0, guidance_rescale=rescale)
    states = np.zeros((2, 3), np.float32)
    condition = Condition((states,) * len(scales), states if negative else None, tuple(scales))
    job.work = replace(job.work, conditions=(condition,) * 3, reserved=condition.rows)
    return job


def guided_by(output: Array, *jobs: Job) -> Array:
    state = BucketState(8, (output.shape[1], output.shape[2], output.shape[3]))
    for job in jobs:
        state.join(job)
    state.advance(state.call(batch_of(*jobs)), output)
    return np.stack([state.latent(job) for job in jobs])


@pytest.mark.parametrize(
    ("output", "scales", "expected"),
    [
        ([5], [None], [5]),
        ([5, 1], [3], [1 + 3 * 4]),
        ([5, 6, 7], [None] * 3, [5, 6, 7]),
        ([5, 6, 1, 2], [3, 0.5], [1 + 3 * 4, 2 + 0.5 * 4]),
        ([5, 6, 7, 1, 2], [3, None, 2], [13, 6, 2 + 2 * 5]),
        ([5, 6, 2], [None, 10], [5, 42]),
        ([5, 6, 2, 99, 99], [None, 10], [5, 42]),
    ],
)
def test_guidance_leads_away_from_the_negative_row(
    output: list[float], scales: list[float | None], expected: list[float]
) -> None:
    jobs = [composed([scale or 1.0], scale is not None) for scale in scales]
    found = guided_by(rows(*output), *jobs)
    assert found.ravel().tolist() == expected
    assert found.shape == (len(jobs), 1, 1, 1)


def test_composed_prompts_add_their_differences_from_the_negative_row() -> None:
    """Rows: positives 5, 6, 7; negatives 1, 2; further positives 10 and 20 of the first job, 30 of the last."""
    jobs = [composed([3, 2, -1], True), composed([1], False), composed([0.5, 4], True)]
    found = guided_by(rows(5, 6, 7, 1, 2, 10, 20, 30), *jobs)
    assert found.ravel().tolist() == [1 + 3 * 4 + 2 * 9 - 1 * 19, 6, 2 + 0.5 * 5 + 4 * 28]


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescaled_guidance_takes_on_the_positives_deviation(share: float) -> None:
    """Equations 15 and 16 of Lin et al. (2023); the neighbour is not touched."""
    output = np.random.default_rng(1).standard_normal((4, *SHAPE)).astype(np.float32)
    output[0] *= 2
    expected = output.astype(np.float64)
    found = guided_by(output, composed([7.0], True, share), composed([7.0], True))
    guided = [expected[2 + i] + 7 * (expected[i] - expected[2 + i]) for i in range(2)]
    ratio = expected[0].std(ddof=1) / guided[0].std(ddof=1)
    np.testing.assert_allclose(found[0], share * guided[0] * ratio + (1 - share) * guided[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], guided[1], rtol=1e-4, atol=1e-5)


def test_a_result_without_deviation_is_not_rescaled_and_harms_nobody() -> None:
    flat, plain = composed([7.0], True, 1.0), composed([7.0], True)
    output = np.ones((4, *SHAPE), np.float32)
    found = guided_by(output, flat, plain)
    assert np.isfinite(found).all()
    assert (found[1] == 1).all()


def test_latents_larger_than_a_block_are_moved_whole() -> None:
    """Sizes around the block of the compiled pass, with what is kept, drawn and older."""
    for width in (BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7):
        shape = (1, 1, width)
        job = make_job(remembering_table(6, seed=3), seed=4, guidance_scale=3.0)
        state, draws = BucketState(2, shape), TorchGenerator(4)
        state.join(job)
        run = TableRun(job.work.table, draws.normal(shape).astype(np.float64) * np.float64(np.float32(1.7)))
        for _ in range(6):
            made = state.call(batch_of(job))
            output = network(state.feeds(made))
            state.draw(made)
            state.advance(made, output)
            wide = output.astype(np.float64)
            run.advance(wide[1] + 3 * (wide[0] - wide[1]), draws.normal(shape))
            job.step_index += 1
            np.testing.assert_allclose(state.latent(job), run.x, rtol=1e-4, atol=1e-5)


def test_a_call_that_is_made_again_has_the_noise_that_was_drawn_for_it() -> None:
    jobs = [sampled("euler_ancestral", "normal", 4, 2.0, 1) for _ in range(2)]
    once, twice = joined(jobs[0]), joined(jobs[1])
    for state, job, draws in (once, jobs[0], 1), (twice, jobs[1], 2):
        made = state.call(batch_of(job))
        output = network(state.feeds(made))
        for _ in range(draws):
            state.draw(made)
        state.advance(made, output)
        job.step_index += 1
        call(state, batch_of(job))
    assert_same_bits([once.latent(jobs[0])], [twice.latent(jobs[1])])


def test_rows_are_positives_in_order_then_negatives_of_the_guided_then_padding() -> None:
    tables = [sampler_table("euler", Choice(steps=steps), trained()) for steps in (4, 5, 6)]
    scales = (5.0, 1.0, 2.0)
    jobs = [make_job(tables[i], context=i + 1.0, seed=i, guidance_scale=scales[i]) for i in range(3)]
    state, batch = joined(*jobs, batch_sizes=(4, 8)), batch_of(*jobs)
    call_ = state.call(batch)
    feeds, lines = state.feeds(call_), call_.moves
    assert set(feeds) == {"sample", "timestep", "encoder_hidden_states"}
    assert feeds["encoder_hidden_states"][:5, 0, 0].tolist() == [1, 2, 3, -2, -4]
    assert feeds["encoder_hidden_states"].shape == (8, 2, 3)
    assert feeds["timestep"].tolist() == [*lines[[0, 1, 2, 0, 2], 0], 0, 0, 0]
    scaled = [state.latent(job) * line[1] for job, line in zip(jobs, lines, strict=True)]
    assert np.array_equal(feeds["sample"], [*scaled, scaled[0], scaled[2], *[np.zeros(SHAPE)] * 3])
    assert {values.dtype for values in feeds.values()} == {np.dtype(np.float32)}
    assert all(values.flags["C_CONTIGUOUS"] for values in feeds.values())


def test_each_job_is_fed_its_own_step() -> None:
    jobs = [sampled(*one) for one in COMPANY[:3]]
    for i, job in enumerate(jobs):
        job.step_index = 2 * i
    expected = [job.work.table.lines[2 * i] for i, job in enumerate(jobs)]
    assert np.array_equal(joined(*jobs).call(batch_of(*jobs)).moves[:, : len(COLUMNS)], expected)


def contexts(state: BucketState, *jobs: Job) -> npt.NDArray[Any]:
    return state.feeds(state.call(batch_of(*jobs)))["encoder_hidden_states"]


def test_contexts_are_gathered_again_only_when_the_members_change() -> None:
    a, b, c = (sampled("euler", "normal", 5, scale, seed) for seed, scale in ((1, 5.0), (2, 1.0), (3, 5.0)))
    state = joined(a, b)
    both = contexts(state, a, b)
    assert both[:, 0, 0].tolist() == pytest.approx([0.1, 0.2, -1.1])
    assert contexts(state, a, b) is both
    call(state, batch_of(a, b))
    assert contexts(state, a, b) is both
    assert contexts(state, b, a) is both, "rows are in the order of slots, whatever the order of the batch"
    assert contexts(state, b)[:, 0, 0].tolist() == pytest.approx([0.2])
    state.join(c)
    assert contexts(state, a, b, c)[:, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, -1.1, -1.3])
    state.leave(a)
    assert contexts(state, b, c)[:, 0, 0].tolist() == pytest.approx([0.3, 0.2, -1.3]), "c moved to a's slot"


def test_a_newcomer_at_a_leavers_address_is_not_taken_for_it() -> None:
    job = sampled("euler", "normal", 5, 1.0, 1)
    state = joined(job)
    assert contexts(state, job)[0, 0, 0] == np.float32(0.1)
    state.leave(job)
    condition_on(job, positives=(np.full((2, 3), 7, np.float32),))
    state.join(job)
    assert contexts(state, job)[0, 0, 0] == 7


def test_the_first_latent_is_the_generators_first_draw_at_the_tables_scale() -> None:
    job = sampled("euler", "normal", 20, 7.5, 42)
    scale = np.float32(job.work.table.initial_scale)
    assert scale > 10
    assert np.array_equal(joined(job).latent(job), TorchGenerator(42).normal(SHAPE) * scale)


def test_a_latent_that_was_handed_out_no_longer_moves() -> None:
    job = sampled("euler", "normal", 5, 7.5, 1)
    state = joined(job)
    before = state.latent(job)
    kept = before.copy()
    call(state, batch_of(job))
    assert np.array_equal(before, kept)
    assert not np.array_equal(state.latent(job), kept)


def test_slots_are_taken_by_joining_and_freed_by_leaving() -> None:
    jobs = [sampled("euler", "normal", 5, 7.5, seed) for seed in range(9)]
    state = joined(*jobs[:8])
    assert [job.slot for job in jobs[:8]] == list(range(8))
    with pytest.raises(RuntimeError, match="all 8 slots"):
        state.join(jobs[8])
    state.leave(jobs[3])
    assert (jobs[3].slot, jobs[7].slot) == (-1, 3), "the last one fills the gap"
    state.join(jobs[8])
    assert jobs[8].slot == 7
    with pytest.raises(RuntimeError, match="not this job's"):
        state.leave(jobs[3])
