"""server.loop: a job's bits are those that it has alone, whatever happens to others; who is at fault fails alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import FeedError
from server.errors import Cancelled, InvalidRequest, ServerError
from server.job import Job, JobStatus
from server.loop import FAILURES_IN_A_ROW, FAILURES_IN_COMPANY
from server.noise import Noise
from server.rows import Array, Call
from tests.looped import Fault, Looped, alone, assert_same_bits, drawing, reply_of

COMPANY: tuple[tuple[str, int, float, str], ...] = (
    ("euler_ancestral", 6, 7.5, "normal"),
    ("dpmpp_2m", 7, 4.0, "karras"),
    ("lms", 8, 1.0, "normal"),
    ("heun", 4, 3.0, "karras"),
    ("euler", 9, 0.0, "normal"),
    ("euler_ancestral", 5, 1.0, "karras"),
    ("ddim", 3, 12.0, "normal"),
    ("dpmpp_2m_sde", 6, 2.0, "karras"),
)


def company(due: Callable[[int], float] = lambda number: 0.0) -> list[Job]:
    """Jobs with these samplers, steps, guidance scales and schedules."""
    return [
        drawing(sampler, steps, number, scale, schedule, due(number))
        for number, (sampler, steps, scale, schedule) in enumerate(COMPANY)
    ]


ALL = range(len(COMPANY))
EXPECTED = alone(*company())


def assert_undisturbed(looped: Looped, *jobs: Job) -> None:
    """These have finished, with the bits that they have alone."""
    for job in jobs:
        assert job.status is JobStatus.FINISHED
        assert_same_bits(looped.latents[job], EXPECTED[job.request.seed])


def test_jobs_of_the_company_differ() -> None:
    assert len({latent.tobytes() for latent in EXPECTED}) == len(EXPECTED)


@pytest.mark.parametrize("batch_sizes", [(), (4, 8, 16), (16,)])
@pytest.mark.parametrize("cap", [0, 3, 6])
def test_bits_do_not_depend_on_company_pauses_or_padding(batch_sizes: tuple[int, ...], cap: int) -> None:
    """Each job is due before those that came earlier, so that it pauses some of them."""
    jobs = company(due=lambda number: -float(number))
    with Looped(16, batch_sizes, cap) as looped:
        for job in jobs:
            looped.submit(job)
            looped.turn()
        looped.drain()
        assert_undisturbed(looped, *jobs)
    assert set(looped.unet.rows) <= set(batch_sizes or range(17))
    if cap == 3:
        assert looped.ends != jobs
        assert any(job not in call for job in jobs[:1] for call in looped.calls[1:-1])


def appearances(looped: Looped, job: Job) -> list[int]:
    """How many jobs were in each of the calls that this one was in, failed ones too."""
    return [len(numbers) for numbers in looped.unet.numbers if job.request.seed in numbers]


@pytest.mark.parametrize("kind", ["raises", "is not finite"])
@pytest.mark.parametrize("culprit", ALL)
def test_only_the_job_at_fault_fails_and_it_is_retried_once(kind: str, culprit: int) -> None:
    jobs = company()
    bad = jobs[culprit]
    with Looped() as looped:
        looped.submit(*jobs)
        looped.turn()
        looped.turn()
        looped.unet.fault = lambda numbers: culprit in numbers and (True if kind == "raises" else frozenset({culprit}))
        looped.drain()
        assert_undisturbed(looped, *(job for job in jobs if job is not bad))
    assert bad not in looped.latents
    assert type(reply_of(bad).error) is ServerError
    assert ("out of memory" if kind == "raises" else "not finite") in str(bad.reply.error)
    assert bad.step_index == 2
    assert appearances(looped, bad)[2:] == [8, 1]
    assert [retried for _, retried in looped.failures] == [True, False]
    assert set(looped.failures[0][0]) == (set(jobs) if kind == "raises" else {bad})
    assert looped.failures[1][0] == (bad,)
    assert sorted(looped.ends, key=jobs.index) == jobs
    retries = [appearances(looped, job).count(1) for job in jobs if job is not bad and job.calls < 9]
    assert all(count >= (kind == "raises") for count in retries)


def test_each_suspect_is_tried_once_alone_while_the_others_go_on() -> None:
    """Three are suspected of what was nobody's fault; a newcomer shares calls meanwhile."""
    jobs = company()[:4]
    faults = iter([False, True])
    with Looped() as looped:
        looped.submit(*jobs[:3])
        looped.turn()
        looped.unet.fault = lambda numbers: next(faults, False)
        looped.turn()
        looped.turn()
        looped.submit(jobs[3])
        looped.drain()
        assert_undisturbed(looped, *jobs)
    made = [[job.request.seed for job in call] for call in looped.calls]
    assert looped.unet.numbers[2] == {0, 1, 2}, "fails"
    assert looped.failures == [(tuple(looped.calls[0]), True)]
    tried = [call[0] for call in made[2:] if len(call) == 1][:3]
    assert sorted(tried) == [0, 1, 2]
    assert [len(call) for call in made[2:8]] == [1, 2, 1, 3, 1, 4]


class CountedNoise:
    """Counts the draws of a generator."""

    def __init__(self, noise: Noise) -> None:
        self.drawn = 0
        self._noise = noise

    def normal(self, shape: tuple[int, ...]) -> Array:
        self.drawn += 1
        return self._noise.normal(shape)


def test_noise_is_not_drawn_twice_for_a_call_that_is_made_again() -> None:
    jobs, chance = company(), random.Random(5)
    noises = [CountedNoise(job.work.noise) for job in jobs]
    for job, noise in zip(jobs, noises, strict=True):
        job.work = replace(job.work, noise=noise)
    with Looped() as looped:
        looped.unet.fault = lambda numbers: (
            len(numbers) > 1 and chance.random() < 0.7 and (chance.random() < 0.3 or frozenset(chance.sample(ALL, 3)))
        )
        looped.submit(*jobs)
        looped.drain()
        assert_undisturbed(looped, *jobs)
    assert min(job.failures for job in jobs[:2]) >= 2
    assert [noise.drawn for noise in noises] == [1 + sum(job.work.table.draws) for job in jobs]


def test_a_job_that_harms_only_company_goes_on_alone_and_the_others_go_on_together() -> None:
    """Nothing tells it from the others, so all that were there thrice go alone; newcomers share calls again."""
    poison, *others = company()
    first, later = others[:2], others[2:]
    with Looped() as looped:
        looped.unet.fault = lambda numbers: 0 in numbers and len(numbers) > 1
        looped.submit(poison, *first)
        while len([jobs for jobs, _ in looped.failures if poison in jobs]) < FAILURES_IN_COMPANY:
            assert looped.turn()
        assert poison.failures == FAILURES_IN_COMPANY
        before = len(looped.calls)
        looped.submit(*later)
        looped.drain()
        assert_undisturbed(looped, poison, *others)
    assert len(looped.failures) == FAILURES_IN_COMPANY
    made = looped.calls[before:]
    assert all(call == (poison,) for call in made if poison in call)
    assert any(set(later) <= set(call) for call in made)
    last = max(place for place, call in enumerate(made) if poison in call)
    assert all(len(call) > 1 or call != made[place + 1] for place, call in enumerate(made[: last - 1]))


def harming(numbers: frozenset[int]) -> Fault:
    """NaN for these jobs where they have company."""
    return lambda called: len(called) > 1 and numbers


ACTIONS = st.one_of(
    st.just("turn"),
    st.just("turn"),
    st.tuples(st.just("submit"), st.integers(0, 7), st.integers(0, 5)),
    st.tuples(st.just("submit"), st.integers(0, 7), st.integers(0, 5)),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.booleans()),
    st.tuples(st.just("raise"), st.none(), st.none()),
    st.tuples(st.just("NaN"), st.sets(st.integers(0, 7), min_size=1, max_size=3), st.none()),
)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(4, 12), st.integers(0, 8), st.lists(ACTIONS, max_size=50))
def test_bits_are_those_alone_whatever_pauses_failures_and_cancellations_happen_to_others(
    max_rows: int, cap: int, actions: list[Any]
) -> None:
    """Failures of company are passing ones, so that nobody who was not cancelled fails."""
    jobs: list[Job] = []
    cancelled: set[Job] = set()
    with Looped(max_rows, cap=cap) as looped:
        for action in actions:
            match action:
                case ("submit", number, due):
                    sampler, steps, scale, schedule = COMPANY[number]
                    jobs.append(drawing(sampler, steps, number, scale, schedule, float(due)))
                    looped.submit(jobs[-1])
                case ("cancel", index, at_once) if index < len(jobs):
                    if reply_of(jobs[index]).give_up(Cancelled("left")) and jobs[index] not in looped.latents:
                        cancelled.add(jobs[index])
                    looped.loop.drop(jobs[index].reply)
                    if at_once:
                        looped.loop.admit()
                case ("raise", *_):
                    looped.unet.fault = lambda numbers: len(numbers) > 1
                    looped.turn()
                case ("NaN", set() as numbers, _):
                    looped.unet.fault = harming(frozenset(numbers))
                    looped.turn()
                case _:
                    looped.turn()
            looped.unet.fault = lambda numbers: False
        looped.drain()
        assert_undisturbed(looped, *(job for job in jobs if job not in cancelled))
    assert {job.status for job in cancelled} <= {JobStatus.CANCELLED}
    assert cancelled.isdisjoint(looped.latents)
    assert set(looped.ends) == set(jobs)
    assert all(job.slot == -1 for job in jobs)


def test_a_request_of_several_images_fails_with_one_of_them() -> None:
    first, second, third, other = company()[:4]
    reply = reply_of(first)
    reply.jobs = (first, second, third)
    second.reply = third.reply = reply
    with Looped() as looped:
        looped.unet.fault = lambda numbers: 1 in numbers and frozenset({1})
        looped.submit(*reply.jobs, other)
        looped.drain()
        assert_undisturbed(looped, other)
    assert "not finite" in str(reply.error)
    assert reply.closings == 1
    statuses = [job.status for job in reply.jobs]
    assert sorted(status.value for status in statuses) == ["cancelled", "cancelled", "failed"]
    assert set(looped.latents) == {other}


def test_an_engine_that_gives_nothing_but_failures_is_said_to_be_broken() -> None:
    with Looped() as looped:
        looped.unet.fault = lambda numbers: True
        for number in range(FAILURES_IN_A_ROW + 2):
            looped.submit(drawing("euler", 2, number))
            looped.turn()
            assert looped.broken == max(0, number + 2 - FAILURES_IN_A_ROW)
        looped.unet.fault = lambda numbers: False
        looped.submit(job := drawing("euler", 1, 0))
        looped.drain()
        assert job.status is JobStatus.FINISHED
        looped.unet.fault = lambda numbers: True
        looped.submit(drawing("euler", 2, 0))
        looped.turn()
    assert looped.broken == 3


def test_requests_that_do_not_fit_the_unet_are_at_fault_themselves_and_the_engine_is_not_broken() -> None:
    with Looped() as looped:
        looped.unet.fault = lambda numbers: 1 in numbers
        looped.unet.error = FeedError("its plan takes 1x77x8 to 16x231x8")
        ends = []
        for _ in range(FAILURES_IN_A_ROW + 2):
            looped.submit(bad := drawing("euler", 2, 1))
            looped.drain()
            ends.append(reply_of(bad).error)
        looped.submit(bad := drawing("euler", 2, 1), good := drawing("euler", 2, 2))
        looped.drain()
        assert good.status is JobStatus.FINISHED
    assert {type(error) for error in (*ends, reply_of(bad).error)} == {InvalidRequest}
    assert "does not take this request: its plan takes 1x77x8 to 16x231x8" in str(ends[0])
    assert looped.broken == 0


class Breaking(Looped):
    """A watcher with a defect of its own."""

    def called(self, call: Call, moved: Sequence[Job], padded: int, seconds: float) -> None:
        super().called(call, moved, padded, seconds)
        if len(self.calls) == 3:
            raise ValueError("a metric has no such label")


def test_a_watcher_that_fails_does_not_change_a_picture() -> None:
    jobs = company()
    with Breaking() as looped:
        looped.submit(*jobs)
        looped.drain()
        assert_undisturbed(looped, *jobs)


def test_steps_are_told_once_though_a_call_was_made_again() -> None:
    """Progress and the backlog are counted from what a watcher is told."""
    jobs = company()
    with Looped() as looped:
        looped.submit(*jobs)
        looped.turn()
        looped.unet.fault = lambda numbers: len(numbers) > 1 and frozenset({3, 5})
        looped.turn()
        looped.unet.fault = lambda numbers: False
        looped.drain()
        assert_undisturbed(looped, *jobs)
    assert [sum(job in call for call in looped.moved) for job in jobs] == [job.calls for job in jobs]
