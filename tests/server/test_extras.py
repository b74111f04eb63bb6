"""server.extras in the rows of a bucket: what a specialised UNet is fed beside latents."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.blend import Blend
from server.job import Batch, Job
from server.levels import Choice
from server.rows import Array, BucketState, Feeds
from server.samplers import sampler_table
from tests.fakes import BUCKET, make_job, trained

SHAPE = (4, 3, 2)
EXTRA = (5, 3, 2)


def brings(number: int, guidance_scale: float = 3.0, label: int | None = None) -> Job:
    """A job whose further channels are its number everywhere."""
    table = sampler_table("euler", Choice(steps=4), trained(steps_offset=1))
    job = make_job(table, context=number / 10, seed=number, guidance_scale=guidance_scale)
    job.work = replace(job.work, extra=np.full(EXTRA, number, np.float32), label=label)
    return job


def alike(number: int, other: Job) -> Job:
    """As `brings`, with the very conditions of another job, as images of one request have."""
    job = brings(number)
    job.work = replace(job.work, conditions=other.work.conditions)
    return job


def joined(*jobs: Job, batch_sizes: Sequence[int] = (), labelled: bool = False) -> BucketState:
    state = BucketState(4, SHAPE, batch_sizes, extra_channels=5, labelled=labelled)
    for job in jobs:
        state.join(job)
    return state


def feeds(state: BucketState, *jobs: Job) -> Feeds:
    return state.feeds(state.call(Batch(BUCKET, jobs)))


def extras(fed: Feeds) -> list[float]:
    """The one number in the further channels of each row."""
    channels = fed["sample"][:, 4:].reshape(len(fed["sample"]), -1)
    assert (channels == channels[:, :1]).all()
    return [float(row[0]) for row in channels]


def test_they_follow_the_latent_in_every_row_of_a_job_and_are_not_scaled() -> None:
    jobs = [brings(1), brings(2, 1.0), brings(3)]
    state = joined(*jobs, batch_sizes=(8,))
    fed = feeds(state, *jobs)
    assert fed["sample"].shape == (8, 9, 3, 2)
    assert fed["sample"].flags["C_CONTIGUOUS"]
    assert extras(fed) == [1, 2, 3, 1, 3, 0, 0, 0]
    c_in = jobs[0].work.table.lines[0, 1]
    assert c_in < 0.1
    for row, job in enumerate(jobs):
        assert np.array_equal(fed["sample"][row, :4], state.latent(job) * c_in)
    assert (fed["sample"][5:] == 0).all()
    assert set(fed) == {"sample", "timestep", "encoder_hidden_states"}


def test_they_are_written_once_for_all_calls_of_the_same_rows() -> None:
    jobs = [brings(1), brings(2)]
    state = joined(*jobs)
    feeds(state, *jobs)["sample"][:, 4:] = 77
    for job in jobs:
        job.step_index += 1
    assert extras(feeds(state, *jobs)) == [77] * 4
    newcomer = brings(3)
    state.join(newcomer)
    assert extras(feeds(state, *jobs)) == [1, 2, 1, 2], "whoever comes or goes, they are written again"
    feeds(state, *jobs)["sample"][:, 4:] = 77
    assert extras(feeds(state, *jobs)) == [77] * 4
    state.leave(newcomer)
    assert extras(feeds(state, *jobs)) == [1, 2, 1, 2]


def test_jobs_of_the_same_conditions_are_not_taken_for_each_other() -> None:
    first = brings(1)
    second, third = alike(2, first), alike(3, first)
    state = joined(first, second)
    assert extras(feeds(state, first)) == [1, 1]
    assert extras(feeds(state, second)) == [2, 2]
    assert extras(feeds(state, first)) == [1, 1]
    state.leave(first)
    assert second.slot == 0
    assert extras(feeds(state, second)) == [2, 2]
    state.leave(second)
    state.join(third)
    assert extras(feeds(state, third)) == [3, 3]


def test_they_follow_their_job_to_another_slot() -> None:
    jobs = [brings(number) for number in (1, 2, 3)]
    state = joined(*jobs)
    assert extras(feeds(state, *jobs)) == [1, 2, 3, 1, 2, 3]
    state.leave(jobs[0])
    assert extras(feeds(state, *jobs[1:])) == [3, 2, 3, 2], "rows are in the order of slots"


def test_padding_is_zero_whoever_had_its_row_before() -> None:
    jobs = [brings(number) for number in (1, 2, 3)]
    state = joined(*jobs, batch_sizes=(4, 6))
    assert extras(feeds(state, *jobs)) == [1, 2, 3, 1, 2, 3]
    assert extras(feeds(state, jobs[1])) == [2, 2, 0, 0]


def test_class_labels_are_whole_numbers_by_row() -> None:
    jobs = [brings(1, label=20), brings(2, 1.0, label=350), brings(3, label=0)]
    state = joined(*jobs, batch_sizes=(8,), labelled=True)
    labels = feeds(state, *jobs)["class_labels"]
    assert labels.dtype == np.int32
    assert labels.tolist() == [20, 350, 0, 20, 0, 0, 0, 0]
    assert feeds(state, *jobs)["class_labels"] is labels, "made again only when the rows change"
    assert not labels.flags.writeable
    assert feeds(state, *jobs[1:])["class_labels"].tolist() == [350, 0, 0, 0, 0, 0, 0, 0]
    state.leave(jobs[0])
    assert feeds(state, *jobs[1:])["class_labels"].tolist() == [0, 350, 0, 0, 0, 0, 0, 0]


def test_a_first_latent_that_is_given_is_taken_as_it_is_and_nothing_is_drawn() -> None:
    given, drawn = brings(1), brings(1)
    start = np.arange(24, dtype=np.float32).reshape(SHAPE)
    given.work = replace(given.work, start=start)
    state = joined(given)
    assert np.array_equal(state.latent(given), start)
    first = drawn.work.noise.normal(SHAPE)
    assert np.array_equal(given.work.noise.normal(SHAPE), first), "its generator is where it began"
    start[:] = 0
    assert state.latent(given).any(), "a copy"


def of(*shape: int) -> npt.NDArray[np.float32]:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("changes", "labelled", "says"),
    [
        (
            {"extra": None},
            False,
            r"extra of the job is \[0, 3, 2\], its bucket takes \[5, 3, 2\]: only jobs of one UNet",
        ),
        ({"extra": of(1, 3, 2)}, False, r"extra of the job is \[1, 3, 2\], its bucket takes \[5, 3, 2\]"),
        ({"extra": of(5, 2, 3)}, False, r"extra of the job is \[5, 2, 3\]"),
        ({"start": of(4, 3, 3)}, False, r"start of the job is \[4, 3, 3\], its bucket takes \[4, 3, 2\]"),
        ({"blend": Blend(of(1, 3, 2), of(*SHAPE), of(*SHAPE))}, False, r"blend\.mask of the job is \[1, 3, 2\]"),
        ({"blend": Blend(of(3, 2), of(1, 3, 2), of(*SHAPE))}, False, r"blend\.clean of the job is \[1, 3, 2\]"),
        ({"blend": Blend(of(3, 2), of(*SHAPE), of(4, 3))}, False, r"blend\.noise of the job is \[4, 3\]"),
        ({"label": 20}, False, r"class label of the job is 20, its bucket takes none"),
        ({}, True, r"class label of the job is None, its bucket takes one"),
    ],
)
def test_a_job_of_another_bucket_is_refused_and_leaves_no_trace(
    changes: dict[str, Any], labelled: bool, says: str
) -> None:
    state = BucketState(4, SHAPE, (), extra_channels=5, labelled=labelled)
    job = brings(1)
    job.work = replace(job.work, **changes)
    with pytest.raises(RuntimeError, match=says):
        state.join(job)
    assert (state.jobs, job.slot) == ([], -1)
    fits = brings(2, label=3 if labelled else None)
    state.join(fits)
    assert extras(feeds(state, fits)) == [2, 2]


def test_a_job_with_further_channels_is_refused_where_the_unet_takes_none() -> None:
    state = BucketState(4, SHAPE)
    with pytest.raises(RuntimeError, match=r"extra of the job is \[5, 3, 2\], its bucket takes \[0, 3, 2\]"):
        state.join(brings(1))


def test_more_rows_than_ever_before_have_theirs() -> None:
    jobs = [brings(number) for number in (1, 2, 3, 4)]
    state = joined(*jobs)
    counts = [len(extras(feeds(state, *jobs[:count]))) for count in (1, 2, 4, 3)]
    assert counts == [2, 4, 8, 6]
    assert extras(feeds(state, *jobs)) == [1, 2, 3, 4] * 2
    latents: list[Array] = [state.latent(job) * job.work.table.lines[0, 1] for job in jobs]
    assert np.array_equal(feeds(state, *jobs)["sample"][:, :4], latents + latents)
