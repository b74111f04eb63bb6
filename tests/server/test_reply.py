"""server.reply: one answer whoever is first, and what is told before it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from server.errors import Cancelled, ServerError, TimedOut
from server.job import Job
from server.reply import Reply
from tests.fakes import FakeReply, ListSink, idle_table, make_job, make_request, restless_threads

CALLS = 5
SIZE = (64, 128)


def timing(queue: float = 1.0, denoise: float = 2.0, decode: float = 3.0) -> dict[str, float]:
    found = {"queue_seconds": queue, "denoise_seconds": denoise, "decode_seconds": decode}
    return {**found, "unet_rows": 10, "unet_calls": 2.5}


def reply_to(images: int = 1, **fields: Any) -> FakeReply:
    """A reply whose jobs have been made."""
    reply = FakeReply(make_request(num_images=images, **fields))
    work = make_job(idle_table(CALLS)).work
    reply.jobs = tuple(Job(reply.request, index, work, reply, 0.0) for index in range(images))
    return reply


def assert_failed(reply: FakeReply, kind: type[ServerError]) -> None:
    assert (reply.sink.answers, reply.sink.late, reply.closings) == (1, 0, 1)
    assert reply.sink.images is None
    assert type(reply.sink.error) is kind
    assert reply.error is reply.sink.error
    assert reply.result is None
    assert reply.answered


def assert_answered(reply: FakeReply, images: list[bytes]) -> None:
    assert (reply.sink.answers, reply.sink.late, reply.closings) == (1, 0, 1)
    assert reply.sink.error is reply.error is None
    assert reply.sink.images == images
    assert reply.closed_with == (images, reply.sink.metadata)
    assert reply.result is None
    assert reply.answered


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_answer_has_all_images_in_order_whichever_is_done_first(order: tuple[int, ...]) -> None:
    reply = reply_to(3, seed=7)
    for index in order:
        assert not reply.answered
        reply.add_image(index, b"image %d" % index, SIZE, timing())
    assert_answered(reply, [b"image 0", b"image 1", b"image 2"])
    assert reply.sink.metadata["seeds"] == [7, 8, 9]
    assert "partial" not in reply.sink.metadata
    assert reply.sink.streamed == []


def test_metadata_has_the_request_and_details_and_how_long_it_took() -> None:
    reply = reply_to(2, client_id="x")
    reply.details = {"checkpoint": "c"}
    reply.add_image(1, b"", (64, 96), timing(1.0, 5.0, 2.0))
    reply.add_image(0, b"", (128, 96), timing(4.0, 3.0, 1.0))
    metadata = reply.sink.metadata
    assert metadata["sizes"] == [[128, 96], [64, 96]]
    assert metadata["checkpoint"] == "c"
    assert metadata["request"]["client_id"] == "x"
    assert {"rho", "sigmas"}.isdisjoint(metadata["request"]), "what was not given is left out"
    expected = {"queue_seconds": 4.0, "denoise_seconds": 5.0, "decode_seconds": 2.0, "unet_rows": 20, "unet_calls": 5.0}
    assert metadata["timing"] == expected


def test_a_variations_metadata_has_its_seed() -> None:
    reply = reply_to(2, seed=7, subseed=3, subseed_strength=0.5)
    for index in range(2):
        reply.add_image(index, b"", SIZE, timing())
    assert reply.sink.metadata["seeds"] == [7, 7]


Told = Callable[[FakeReply], object]
LATE: dict[str, Told] = {
    "fail": lambda reply: reply.fail(ServerError("late")),
    "give up": lambda reply: reply.give_up(Cancelled("late")),
    "expire": lambda reply: reply.expire(),
    "image": lambda reply: reply.add_image(1, b"late", SIZE, timing()),
    "leave out": lambda reply: reply.leave_out(1),
    "finish": lambda reply: reply.finish([b"late"], {}),
    "progress": lambda reply: reply.tell({}),
    "step": lambda reply: reply.step_done(lambda _: {}),
    "preview": lambda reply: reply.add_preview(0, 1, b"late"),
}


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("partial_result", [0, 1])
@pytest.mark.parametrize("stream_images", [0, 1])
def test_nothing_is_told_after_the_answer(late: str, partial_result: int, stream_images: int) -> None:
    options = {"progress_interval": 1, "partial_result": partial_result, "stream_images": stream_images}
    failed, answered = reply_to(2, **options), reply_to(2, **options)
    failed.fail(ServerError("first"))
    LATE[late](failed)
    assert_failed(failed, ServerError)
    assert str(failed.error) == "first"
    answered.add_image(0, b"0", SIZE, timing())
    answered.add_image(1, b"1", SIZE, timing())
    metadata = dict(answered.sink.metadata)
    LATE[late](answered)
    assert_answered(answered, [] if stream_images else [b"0", b"1"])
    assert answered.sink.metadata == metadata


def test_giving_up_an_answered_request_is_refused() -> None:
    reply = reply_to()
    reply.add_image(0, b"", SIZE, timing())
    assert not reply.give_up(Cancelled("late"))
    assert reply.given_up is None


@pytest.mark.parametrize(("images", "done"), [(1, 0), (3, 0), (3, 2)])
def test_a_request_that_is_given_up_fails_at_once(images: int, done: int) -> None:
    reply = reply_to(images)
    for index in range(done):
        reply.add_image(index, b"", SIZE, timing())
    assert reply.give_up(Cancelled("left"))
    assert_failed(reply, Cancelled)


def test_a_request_that_took_too_long_is_told_its_timeout() -> None:
    reply = reply_to(timeout_ms=1234)
    reply.expire()
    assert_failed(reply, TimedOut)
    assert "timeout_ms of 1234" in str(reply.error)


def test_a_partial_result_has_the_images_as_far_as_they_are() -> None:
    reply = reply_to(4, partial_result=1, seed=10)
    reply.add_image(2, b"whole", SIZE, timing())
    assert reply.give_up(Cancelled("enough"))
    assert not reply.answered
    reply.leave_out(0)
    reply.add_image(3, b"half", SIZE, timing(), steps_done=2)
    assert not reply.answered
    reply.leave_out(1)
    assert_answered(reply, [b"whole", b"half"])
    assert reply.sink.metadata["partial"] == {"reason": "enough", "steps_done": {"2": CALLS, "3": 2}}
    assert reply.sink.metadata["seeds"] == [12, 13]


def test_what_is_not_begun_has_no_partial_result() -> None:
    reply = reply_to(2, partial_result=1)
    reply.jobs = ()
    reply.expire()
    assert_failed(reply, TimedOut)


def test_who_has_left_gets_no_partial_result() -> None:
    reply = reply_to(2, partial_result=1)
    assert reply.give_up(Cancelled("gone"), partial=False)
    assert_failed(reply, Cancelled)


def test_a_partial_result_without_an_image_is_the_reason() -> None:
    reply = reply_to(2, partial_result=1)
    reply.expire()
    reply.leave_out(1)
    assert not reply.answered
    reply.leave_out(0)
    assert_failed(reply, TimedOut)


def test_there_is_no_partial_result_before_there_are_jobs_nor_for_a_client_that_left() -> None:
    unread, left = reply_to(2, partial_result=1), reply_to(2, partial_result=1)
    unread.jobs = ()
    assert unread.give_up(Cancelled("enough"))
    assert_failed(unread, Cancelled)
    left.add_image(0, b"", SIZE, timing())
    assert left.give_up(Cancelled("left"), partial=False)
    assert_failed(left, Cancelled)


def test_a_request_for_partial_results_can_still_fail() -> None:
    reply = reply_to(2, partial_result=1)
    reply.add_image(0, b"", SIZE, timing())
    reply.give_up(Cancelled("enough"))
    reply.fail(ServerError("decoding failed"))
    assert_failed(reply, ServerError)


def test_images_are_streamed_as_they_come_and_the_answer_has_none() -> None:
    reply = reply_to(3, stream_images=1, partial_result=1)
    reply.add_image(1, b"1", SIZE, timing())
    assert reply.sink.streamed == [({"image": 1}, b"1")]
    reply.add_image(0, b"0", SIZE, timing())
    reply.give_up(Cancelled("enough"))
    reply.add_image(2, b"2", SIZE, timing(), steps_done=3)
    assert reply.sink.streamed[1:] == [({"image": 0}, b"0"), ({"image": 2, "steps_done": 3}, b"2")]
    assert_answered(reply, [])
    assert reply.sink.metadata["seeds"] == [0, 1, 2]
    assert reply.sink.metadata["partial"]["steps_done"] == {"0": CALLS, "1": CALLS, "2": 3}


@pytest.mark.parametrize(
    ("interval", "images", "steps"),
    [(0, 1, []), (1, 1, [1, 2, 3, 4, 5]), (2, 1, [2, 4, 5]), (5, 1, [5]), (9, 1, [5]), (3, 2, [3, 6, 9, 10])],
)
def test_progress_is_told_at_its_interval_and_at_the_end(interval: int, images: int, steps: list[int]) -> None:
    reply = reply_to(images, progress_interval=interval)
    asked: list[Reply] = []

    def expected(about: Reply) -> Mapping[str, Any]:
        asked.append(about)
        return {"queue_position": 0, "seconds_left": 1.5}

    for _ in range(images * CALLS):
        reply.step_done(expected)
    told = [{"step": step, "total": images * CALLS, "queue_position": 0, "seconds_left": 1.5} for step in steps]
    assert reply.sink.events == told
    assert asked == [reply] * len(steps), "nobody is asked for what is not told"


def test_previews_say_how_far_their_image_is() -> None:
    reply = reply_to(2)
    reply.add_preview(1, 3, b"jpeg")
    assert reply.sink.previews == [({"image": 1, "step": 3, "total": CALLS}, b"jpeg")]
    assert reply.previews == 1


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, []),
        ({"preview_interval": 2}, [2, 4]),
        ({"preview_interval": 1}, [1, 2, 3, 4]),
        ({"preview_interval": 5}, []),
        ({"partial_result": 1}, [1, 2, 3, 4, 5]),
        ({"partial_result": 1, "preview_interval": 2}, [1, 2, 3, 4, 5]),
    ],
)
def test_the_clean_latent_is_wanted_for_previews_and_partial_results(fields: dict[str, Any], wanted: list[int]) -> None:
    reply = reply_to(**fields)
    found = []
    for step in range(CALLS):
        reply.jobs[0].step_index = step
        if reply.wants_clean(reply.jobs[0]):
            found.append(step + 1)
    assert found == wanted


class FailingSink(ListSink):
    """A client that cannot be told anything but an error, and not even that if it is `gone`."""

    gone = False

    def progress(self, event: Mapping[str, Any]) -> None:
        raise ConnectionError("no progress")

    def preview(self, event: Mapping[str, Any], data: bytes) -> None:
        raise ConnectionError("no previews")

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        raise ConnectionError("no images")

    def fail(self, error: ServerError) -> None:
        if self.gone:
            raise ConnectionError("no error")
        super().fail(error)


@pytest.mark.parametrize("gone", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_sink_that_fails_harms_nobody_and_its_request_is_closed(gone: bool, fails: bool) -> None:
    closed: list[Reply] = []

    def close(reply: Reply) -> None:
        closed.append(reply)
        raise RuntimeError("a defect of ours")

    sink = FailingSink()
    sink.gone = gone
    reply = Reply(make_request(progress_interval=1), sink, close)
    reply.jobs = reply_to().jobs
    reply.step_done(lambda _: {})
    reply.add_preview(0, 1, b"")
    if fails:
        reply.fail(ServerError("it failed"))
    else:
        reply.add_image(0, b"", SIZE, timing())
    reply.fail(ServerError("late"))
    assert (closed, reply.answered, sink.answers) == ([reply], True, not gone)
    assert reply.result is None
    assert ("it failed" if fails else "could not be sent: no images") in str(reply.error)
    assert sink.error is (None if gone else reply.error)


def raced(reply: FakeReply, actions: list[Told]) -> None:
    """All of these at once, each in a thread of its own."""
    start = threading.Barrier(len(actions))

    def act(action: Told) -> None:
        start.wait()
        action(reply)

    threads = [threading.Thread(target=act, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def image(index: int) -> Told:
    return lambda reply: reply.add_image(index, b"image %d" % index, SIZE, timing())


def left_out(index: int) -> Told:
    return lambda reply: reply.leave_out(index)


RACES: dict[str, tuple[dict[str, Any], list[Told]]] = {
    "images": ({}, [image(0), image(1), image(2)]),
    "failures": ({}, [LATE["fail"], LATE["fail"], LATE["give up"], LATE["expire"]]),
    "all": ({}, [image(0), image(1), image(2), *LATE.values()]),
    "images and a failure": ({}, [image(0), image(1), image(2), LATE["fail"], LATE["step"]]),
    "images and a cancellation": ({}, [image(0), image(1), image(2), LATE["give up"], LATE["preview"]]),
    "a stream": ({"stream_images": 1}, [image(0), image(1), image(2), LATE["fail"], LATE["step"]]),
    "partial": ({"partial_result": 1}, [image(0), left_out(1), image(2), LATE["give up"]]),
    "partial without images": ({"partial_result": 1}, [left_out(0), left_out(1), left_out(2), LATE["expire"]]),
    "partial and a failure": ({"partial_result": 1}, [image(0), left_out(1), image(2), LATE["fail"]]),
}


@pytest.mark.parametrize("race", RACES)
def test_there_is_one_answer_whoever_is_first(race: str) -> None:
    fields, actions = RACES[race]
    chance = random.Random(1)
    for _ in range(25):
        reply = reply_to(3, progress_interval=1, **fields)
        with restless_threads():
            raced(reply, chance.sample(actions, len(actions)))
        assert reply.answered
        if reply.sink.error is not None:
            assert_failed(reply, type(reply.sink.error))
        else:
            assert reply.sink.images is not None
            assert_answered(reply, reply.sink.images)
