"""server.forwarding: requests and answers between two processes; what happens when either goes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.errors import InvalidRequest, Overloaded, ServerError, StartupError
from server.forwarding import Answer, Asked, Failed, ForwardedSink, Forwarder, Images, Receiver
from server.reply import Reply
from tests.fakes import make_request


class Desk:
    """In place of the service: keeps what is asked, so that the test answers it."""

    def __init__(self) -> None:
        self.asked: queue.SimpleQueue[tuple[dict[str, Any], Reply]] = queue.SimpleQueue()
        self.left: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self.seen: list[tuple[str, str | None]] = []

    def submit(self, tensors: Any, sink: ForwardedSink, request_id: str, traceparent: str | None) -> Reply | None:
        self.seen.append((request_id, traceparent))
        match tensors.get("do"):
            case ["refuse"]:
                raise InvalidRequest("steps is 0; send 1 to 500")
            case ["break"]:
                raise KeyError("a bug")
            case ["answer at once"]:
                sink.finish([], {"cancelled": 1})
                return None
        reply = Reply(make_request(), sink, lambda reply: None)
        if tensors.get("do") == ["answer early"]:
            reply.finish([b"early"], {})
        self.asked.put((dict(tensors), reply))
        return reply


class Face:
    """A forwarder and the answers that it gave."""

    def __init__(self, path: Path) -> None:
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.forwarder = Forwarder(path, self.answers.put)

    def ask(self, number: int, **tensors: Any) -> None:
        self.forwarder.ask(Asked(number, tensors, f"id {number}", None))

    def answer(self) -> Answer:
        return self.answers.get(timeout=5)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def receiver(desk: Desk, tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "sock", desk.submit, desk.left.put)
    yield made
    made.close()


@pytest.fixture
def face(receiver: Receiver, tmp_path: Path) -> Iterator[Face]:
    made = Face(tmp_path / "sock")
    yield made
    made.forwarder.close()


def test_a_request_goes_there_and_its_images_come_back(desk: Desk, face: Face) -> None:
    face.forwarder.ask(Asked(7, {"prompt": [b"a cat"], "seed": [3]}, "mine", "00-trace-01"))
    tensors, reply = desk.asked.get(timeout=5)
    assert tensors == {"prompt": [b"a cat"], "seed": [3]}
    assert desk.seen == [("mine", "00-trace-01")]
    images = [b"x" * 3_000_000, b"y"]
    reply.finish(images, {"seeds": [3, 4]})
    assert face.answer() == Images(7, images, {"seeds": [3, 4]})


def test_answers_come_in_the_order_of_finishing(desk: Desk, face: Face) -> None:
    for number in range(3):
        face.ask(number)
    replies = [desk.asked.get(timeout=5)[1] for _ in range(3)]
    for number in (2, 0, 1):
        replies[number].finish([b"%d" % number], {})
        assert face.answer() == Images(number, [b"%d" % number], {})


def test_failures_keep_their_kind_their_words_and_when_to_retry(desk: Desk, face: Face) -> None:
    face.ask(1, do=["refuse"])
    refused = face.answer()
    assert isinstance(refused, Failed)
    assert type(refused.error) is InvalidRequest
    assert str(refused.error) == "steps is 0; send 1 to 500"
    face.ask(2)
    desk.asked.get(timeout=5)[1].fail(Overloaded("full", retry_after_ms=70))
    late = face.answer()
    assert isinstance(late, Failed)
    assert isinstance(late.error, Overloaded)
    assert (str(late.error), late.error.retry_after_ms) == ("full; retry after 70 ms", 70)


def test_a_bug_answers_its_own_request_and_no_other(desk: Desk, face: Face) -> None:
    face.ask(1)
    face.ask(2, do=["break"])
    broken = face.answer()
    assert isinstance(broken, Failed)
    assert (broken.number, type(broken.error)) == (2, ServerError)
    assert "a bug" in str(broken.error)
    desk.asked.get(timeout=5)[1].finish([], {})
    assert face.answer().number == 1


def test_an_answer_that_cannot_be_written_is_an_error_and_the_next_is_not(desk: Desk, face: Face) -> None:
    face.ask(1)
    desk.asked.get(timeout=5)[1].finish([], {"a function": lambda: None})
    unwritten = face.answer()
    assert isinstance(unwritten, Failed)
    assert (unwritten.number, type(unwritten.error)) == (1, ServerError)
    face.ask(2)
    desk.asked.get(timeout=5)[1].finish([b"2"], {})
    assert face.answer() == Images(2, [b"2"], {})


@pytest.mark.parametrize("way", ["answer at once", "answer early"])
def test_what_is_answered_while_it_is_taken_in(desk: Desk, face: Face, way: str) -> None:
    face.ask(1, do=[way])
    assert isinstance(face.answer(), Images)
    face.forwarder.leave(1)
    face.ask(2, do=[way])
    assert face.answer().number == 2
    assert desk.left.empty()


def test_a_client_that_leaves_is_told_once_its_request_is_open(desk: Desk, face: Face) -> None:
    face.forwarder.leave(5)
    face.ask(5)
    _, reply = desk.asked.get(timeout=5)
    assert desk.left.empty()
    face.forwarder.leave(5)
    assert desk.left.get(timeout=5) is reply
    reply.fail(ServerError("cancelled"))
    assert face.answer().number == 5


def test_a_face_that_goes_leaves_all_it_asked(desk: Desk, face: Face) -> None:
    face.ask(1)
    face.ask(2)
    replies = {desk.asked.get(timeout=5)[1] for _ in range(2)}
    face.forwarder.close()
    assert {desk.left.get(timeout=5) for _ in range(2)} == replies
    for reply in replies:
        reply.finish([b"nobody reads it"], {})


def test_answers_that_are_there_still_go_out_when_it_closes(desk: Desk, face: Face, receiver: Receiver) -> None:
    for number in range(20):
        face.ask(number)
    for number in range(20):
        desk.asked.get(timeout=5)[1].finish([bytes(200_000)], {"number": number})
    receiver.close()
    assert [answer.number for answer in (face.answer() for _ in range(20)) if isinstance(answer, Images)] == [
        *range(20)
    ]


def test_without_the_other_side_a_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Overloaded, match="send again in a moment"):
        Face(tmp_path / "sock").ask(1)


def test_the_other_side_may_come_back(desk: Desk, tmp_path: Path) -> None:
    face = Face(tmp_path / "sock")
    first = Receiver(tmp_path / "sock", desk.submit, desk.left.put)
    face.ask(1)
    desk.asked.get(timeout=5)
    first.close()
    lost = face.answer()
    assert isinstance(lost, Failed)
    assert isinstance(lost.error, Overloaded)
    second = Receiver(tmp_path / "sock", desk.submit, desk.left.put)
    face.ask(2)
    desk.asked.get(timeout=5)[1].finish([b"2"], {})
    assert face.answer() == Images(2, [b"2"], {})
    face.forwarder.close()
    second.close()


def test_many_threads_may_ask_at_once(desk: Desk, face: Face) -> None:
    def serve() -> None:
        for _ in range(400):
            tensors, reply = desk.asked.get(timeout=5)
            reply.finish([b"%d" % tensors["seed"][0]], {})

    def ask(first: int) -> None:
        for number in range(first, first + 50):
            face.ask(number, seed=[number])

    threads = [threading.Thread(target=serve), *(threading.Thread(target=ask, args=(50 * i,)) for i in range(8))]
    for thread in threads:
        thread.start()
    answers = [face.answer() for _ in range(400)]
    for thread in threads:
        thread.join()
    assert sorted(answer.number for answer in answers) == list(range(400))
    assert all(isinstance(a, Images) and a.images == [b"%d" % a.number] for a in answers)


def test_a_face_that_does_not_read_holds_up_nobody(desk: Desk, receiver: Receiver, tmp_path: Path) -> None:
    release = threading.Event()

    def hold(answer: Answer) -> None:
        release.wait(10)

    stuck, quick = Forwarder(tmp_path / "sock", hold), Face(tmp_path / "sock")
    for number in range(8):
        stuck.ask(Asked(number, {}, "", None))
    begun = time.monotonic()
    for _ in range(8):
        desk.asked.get(timeout=5)[1].finish([bytes(4_000_000)], {})
    quick.ask(1)
    desk.asked.get(timeout=5)[1].finish([], {})
    assert quick.answer().number == 1
    assert time.monotonic() - begun < 5
    release.set()
    stuck.close()
    quick.forwarder.close()


def test_a_path_too_long_for_a_socket_is_told(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="set TMPDIR to a shorter folder"):
        Receiver(tmp_path / ("x" * 120), desk.submit, desk.left.put)
