"""server.loop: requests that are given up, too late or partial free their rows at the next call, and end once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from server.errors import Cancelled, ServerError, TimedOut
from server.job import Job, JobStatus
from tests.looped import CALL_SECONDS, Looped, alone, assert_same_bits, drawing, reply_of

STEPS = 8


def job(number: int, due: float = 0.0, **fields: Any) -> Job:
    return drawing("euler", STEPS, number, due=due, **fields)


def give_up(looped: Looped, one: Job) -> None:
    """As the service does."""
    if reply_of(one).give_up(Cancelled("left")):
        looped.loop.drop(one.reply)


def before_it_arrives(looped: Looped, one: Job) -> None:
    give_up(looped, one)
    looped.submit(one)


def before_its_jobs_are_made(looped: Looped, one: Job) -> None:
    one.reply.jobs = ()
    give_up(looped, one)
    looped.loop.admit()
    one.reply.jobs = (one,)
    looped.submit(one)


def on_its_way(looped: Looped, one: Job) -> None:
    looped.submit(one)
    give_up(looped, one)


def while_it_waits(looped: Looped, one: Job) -> None:
    one.due = 100.0
    looped.submit(one)
    looped.turn()
    assert one.status is JobStatus.WAITING
    give_up(looped, one)


def while_it_runs(looped: Looped, one: Job) -> None:
    one.due = -100.0
    looped.submit(one)
    looped.turn()
    assert one.slot >= 0
    give_up(looped, one)


def while_it_pauses(looped: Looped, one: Job) -> None:
    one.due = -100.0
    looped.submit(one)
    looped.turn()
    looped.submit(urgent := job(5, due=-200.0))
    looped.turn()
    assert one.slot >= 0
    assert looped.unet.numbers[-1] >= {urgent.request.seed}
    assert one.request.seed not in looped.unet.numbers[-1]
    give_up(looped, one)


def while_it_is_suspected(looped: Looped, one: Job) -> None:
    one.due = -100.0
    looped.submit(one, job(6, due=-100.0, guidance_scale=1.0))
    looped.unet.fault = lambda numbers: len(numbers) > 1
    looped.turn()
    looped.unet.fault = lambda numbers: False
    assert one.failures == 1
    give_up(looped, one)


WHEN: dict[str, Callable[[Looped, Job], None]] = {
    "before it arrives": before_it_arrives,
    "before its jobs are made": before_its_jobs_are_made,
    "on its way": on_its_way,
    "while it waits": while_it_waits,
    "while it runs": while_it_runs,
    "while it pauses": while_it_pauses,
    "while it is suspected": while_it_is_suspected,
}


@pytest.mark.parametrize("partial_result", [0, 1])
@pytest.mark.parametrize("when", WHEN)
def test_a_job_that_is_given_up_is_in_no_further_call_and_the_others_go_on(when: str, partial_result: int) -> None:
    """Three rows fit a call, so that its two are missed at once."""
    others = [job(1), job(2, guidance_scale=1.0)]
    expected = alone(job(1), job(2, guidance_scale=1.0))
    with Looped(3) as looped:
        looped.submit(*others)
        looped.turn()
        left = job(0, partial_result=partial_result)
        WHEN[when](looped, left)
        before = len(looped.unet.numbers)
        looped.turn()
        assert left.status is JobStatus.CANCELLED
        assert left.slot == -1
        assert looped.ends[-1] is left
        looped.drain()
        for other, latent in zip(others, expected, strict=True):
            assert_same_bits(looped.latents[other], latent)
        assert all(0 not in numbers for numbers in looped.unet.numbers[before:])
        assert sum(map(sum, looped.scheduler.counts().values())) == 0
    assert left.step_index < STEPS
    if partial_result and left.step_index:
        assert np.isfinite(looped.latents[left]).all()
        assert not left.reply.answered, "the image is being decoded"
    else:
        assert left not in looped.latents
        assert reply_of(left).closings == 1
        assert type(left.reply.error) is Cancelled


def test_a_request_that_is_given_up_after_its_jobs_have_ended_changes_nothing() -> None:
    with Looped() as looped:
        looped.submit(one := job(0, partial_result=1))
        looped.drain()
        give_up(looped, one)
        looped.loop.drop(one.reply)
        looped.drain()
        assert (looped.ends, one.status) == ([one], JobStatus.FINISHED)
        assert set(looped.latents) == {one}


def test_a_job_that_ended_makes_room_for_the_next_in_the_same_call() -> None:
    jobs = [job(number, due=float(number)) for number in range(4)]
    with Looped(4) as looped:
        looped.submit(*jobs)
        looped.turn()
        give_up(looped, jobs[0])
        looped.turn()
        assert looped.unet.numbers == [{0, 1}, {1, 2}]


def test_requests_that_were_answered_otherwise_end_their_jobs() -> None:
    """As when decoding one image of several failed."""
    with Looped() as looped:
        looped.submit(one := job(0, partial_result=1), other := job(1))
        looped.turn()
        assert one.clean is not None
        reply_of(one).fail(ServerError("decoding failed"))
        looped.loop.drop(one.reply)
        looped.turn()
        assert looped.unet.numbers[-1] == {1}
        assert (one.status, other.status) == (JobStatus.CANCELLED, JobStatus.RUNNING)
        assert looped.latents == {}


def of_one_request(*jobs: Job) -> Job:
    """Makes these jobs the images of the first one's request."""
    reply = reply_of(jobs[0])
    reply._missing = set(range(len(jobs)))
    reply.jobs = jobs
    for index, one in enumerate(jobs):
        one.reply, one.index = reply, index
    return jobs[0]


def test_partial_images_are_as_far_as_each_is() -> None:
    """The first is done, the second on its way, the third has not begun."""
    jobs = [drawing("euler", 3, 0, due=0.0, partial_result=1), job(1, due=1.0), job(2, due=2.0)]
    first = of_one_request(*jobs)
    with Looped(2) as looped:
        looped.submit(*jobs)
        for _ in range(5):
            looped.turn()
        give_up(looped, first)
        looped.drain()
        assert looped.ends == jobs
        assert set(looped.latents) == set(jobs[:2])
    assert [one.step_index for one in jobs] == [3, 2, 0]
    reply = reply_of(first)
    assert not reply.answered
    timing = dict.fromkeys(("queue_seconds", "denoise_seconds", "decode_seconds", "unet_rows", "unet_calls"), 0.0)
    reply.add_image(0, b"0", (8, 8), timing)
    reply.add_image(1, b"1", (8, 8), timing, steps_done=2)
    assert reply.sink.images == [b"0", b"1"]
    assert reply.sink.metadata["partial"] == {"reason": "left", "steps_done": {"0": 3, "1": 2}}


def test_a_partial_image_is_the_clean_latent_after_its_last_call() -> None:
    """Just before the end it is nearly the image itself."""
    jobs = [drawing("euler", 20, 3, partial_result=1) for _ in range(2)]
    with Looped() as looped:
        looped.submit(jobs[0])
        for _ in range(19):
            looped.turn()
        give_up(looped, jobs[0])
        looped.submit(jobs[1])
        looped.drain()
        early, whole = looped.latents[jobs[0]], looped.latents[jobs[1]]
    assert jobs[0].step_index == 19
    np.testing.assert_allclose(early, whole, atol=0.2)
    assert not np.array_equal(early, whole)


def test_jobs_beyond_their_deadline_are_answered_and_the_others_go_on() -> None:
    late = [drawing("euler", STEPS, 0, deadline=100.0 + 3.5 * CALL_SECONDS, timeout_ms=350), job(1)]
    waiting = drawing("euler", STEPS, 2, deadline=100.0 + 1.5 * CALL_SECONDS, timeout_ms=150, due=9.0)
    in_time = drawing("euler", STEPS, 3, deadline=1000.0, timeout_ms=900_000, due=10.0)
    with Looped(4) as looped:
        looped.submit(*late, waiting, in_time)
        looped.drain()
        assert looped.unet.numbers == [{0, 1}] * 4 + [{1, 3}] * 4 + [{3}] * 4
        assert set(looped.latents) == {late[1], in_time}
        assert looped.ends == [waiting, late[0], late[1], in_time]
    for one in (late[0], waiting):
        assert type(one.reply.error) is TimedOut
        assert one.status is JobStatus.CANCELLED
        assert reply_of(one).closings == 1


def test_a_deadline_ends_all_images_of_its_request_once() -> None:
    jobs = [drawing("euler", STEPS, number, deadline=100.05, timeout_ms=50, partial_result=1) for number in range(3)]
    first = of_one_request(*jobs)
    with Looped(4) as looped:
        looped.submit(*jobs)
        looped.drain()
        assert looped.ends == jobs
        assert set(looped.latents) == set(jobs[:2])
    assert type(first.reply.given_up) is TimedOut
    assert not first.reply.answered


def test_a_deadline_that_passes_after_the_last_call_is_no_failure() -> None:
    """What is being decoded is worth waiting for."""
    with Looped() as looped:
        looped.submit(one := drawing("euler", 2, 0, deadline=100.0 + 2 * CALL_SECONDS, timeout_ms=200))
        looped.drain()
        looped.unet.now += 10
        looped.turn()
        assert one.status is JobStatus.FINISHED
        assert not one.reply.answered


def test_times_are_taken_at_the_first_call_and_at_the_end() -> None:
    early, late = job(0), job(1, due=1.0)
    with Looped(2) as looped:
        looped.submit(early, late)
        looped.drain()
    times = [(one.started, one.ended) for one in (early, late)]
    span = STEPS * CALL_SECONDS
    assert times[0] == pytest.approx((100.0, 100.0 + span))
    assert times[1] == pytest.approx((100.0 + span, 100.0 + 2 * span))


def test_a_jobs_share_of_calls_is_that_of_its_company() -> None:
    jobs = [drawing("euler", 4, 0), drawing("euler", 2, 1), drawing("euler", 2, 2)]
    with Looped() as looped:
        looped.submit(*jobs)
        looped.drain()
    assert [one.call_share for one in jobs] == pytest.approx([2 / 3 + 2, 2 / 3, 2 / 3])


def test_an_idle_loop_has_nothing_to_do() -> None:
    with Looped() as looped:
        assert not looped.turn()
        looped.submit()
        assert not looped.turn()


def test_a_running_loop_serves_what_any_thread_submits_and_stops_when_closed() -> None:
    jobs = [job(number) for number in range(12)]
    expected = alone(*[job(number) for number in range(12)])
    done = threading.Event()

    class Noticing(Looped):
        def finished(self, one: Job, latent: Any, seconds: float) -> None:
            super().finished(one, latent, seconds)
            if len(self.latents) == len(jobs):
                done.set()

    with Noticing() as looped:
        looped.loop.start()
        threads = [threading.Thread(target=looped.submit, args=jobs[place::3]) for place in range(3)]
        for thread in threads:
            thread.start()
        assert done.wait(20.0)
        looped.loop.close()
        looped.submit(late := job(0))
    assert late.status is JobStatus.NEW
    for one, latent in zip(jobs, expected, strict=True):
        assert_same_bits(looped.latents[one], latent)
