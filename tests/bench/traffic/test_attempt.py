"""A judge that looks in order, and trials that end as soon as they may."""

from __future__ import annotations

import asyncio
import time

import pytest

from bench.traffic.asking import Outcome, Status
from bench.traffic.attempt import FIRST_LOOK, Gone, Judge, Terms, attempt
from bench.traffic.mix import Asked, Mix
from server.errors import ServerError


def judged(judge: Judge, verdicts: list[bool]) -> None:
    for verdict in verdicts:
        judge.ended(judge.sent(1.0), verdict)
    judge.look(0.0)


def test_a_judge_is_sure_early_where_it_is_clear() -> None:
    judge = Judge(0.95, 600)
    judged(judge, [False] * 100)
    assert judge.enough is False
    assert len(judge.in_time) == FIRST_LOOK
    judge = Judge(0.95, 600)
    judged(judge, [True] * 160)
    assert judge.enough is True
    judge = Judge(0.95, 600)
    judged(judge, [i % 20 != 0 for i in range(600)])
    assert judge.enough is None
    assert judge.done


def test_a_judge_waits_for_those_who_were_sent_first() -> None:
    judge = Judge(0.95, 100)
    slow = judge.sent(overdue=5.0)
    judged(judge, [True] * 50)
    assert judge.in_time == []
    judge.look(5.1)
    assert judge.in_time == [False] + [True] * 50
    judge.ended(slow, True)
    judge.look(6.0)
    assert judge.in_time[0] is False


class Queue:
    """One request at a time, each so many seconds."""

    def __init__(self, seconds: float, status: Status = "ok") -> None:
        self.seen: list[Asked] = []
        self._seconds, self._status = seconds, status
        self._free = 0.0

    async def send(self, asked: Asked, intended: float) -> Outcome:
        self.seen.append(asked)
        sent = time.monotonic()
        self._free = max(self._free, sent) + self._seconds
        await asyncio.sleep(self._free - sent)
        return Outcome(asked, self._status, intended, sent, time.monotonic(), "socket closed")


def terms(least_seconds: float = 0.2, most: int = 160, limit: float = 0.1) -> Terms:
    return Terms(Mix(), lambda kind: limit, 0.1, 0.95, least_seconds, most)


def test_a_rate_that_is_too_high_is_given_up_at_once() -> None:
    queue = Queue(0.01)
    made = asyncio.run(attempt(queue.send, terms(most=1000), rate=400.0, seed=0))
    assert made.trial.interval[1] < 0.95
    # What was open when it was given up does not count.
    assert made.trial.counted in (125, 250)
    assert made.outcomes == {"ok": len(queue.seen)}


def test_a_rate_that_is_low_enough_takes_its_least_time() -> None:
    queue = Queue(0.0)
    begun = time.monotonic()
    made = asyncio.run(attempt(queue.send, terms(least_seconds=0.6, limit=30.0), rate=400.0, seed=0))
    assert made.trial.in_time == made.trial.counted
    assert time.monotonic() - begun >= 0.7
    # Those of the first 0.1 s do not count.
    assert made.trial.counted < len(queue.seen)
    assert len({asked.fields["request_id"] for asked in queue.seen}) == len(queue.seen)


def test_a_server_that_broke_off_is_not_asked_on() -> None:
    queue = Queue(0.0, "disconnected")
    with pytest.raises(Gone):
        asyncio.run(attempt(queue.send, terms(most=1000), rate=50.0, seed=0))
    assert len(queue.seen) < 40


def test_answers_that_are_too_late_to_wait_for_are_late() -> None:
    class Slow(Queue):
        async def send(self, asked: Asked, intended: float) -> Outcome:
            self._status = "lost" if asked.number % 4 else "ok"
            return await super().send(asked, intended)

    made = asyncio.run(attempt(Slow(0.0).send, terms(), rate=800.0, seed=0))
    assert made.trial.interval[1] < 0.95
    assert made.outcomes["lost"] > made.outcomes["ok"] > 0


def test_other_seeds_are_other_requests() -> None:
    one, other = Queue(0.0), Queue(0.0)
    asyncio.run(attempt(one.send, terms(), rate=800.0, seed=0))
    asyncio.run(attempt(other.send, terms(), rate=800.0, seed=1))
    assert one.seen[0].fields["seed"] != other.seen[0].fields["seed"]


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        ("disconnected", Gone, r"the server went away: \d+ of \d+ requests were not answered \(socket closed\)"),
        ("lost", Gone, "the server went away"),
        ("invalid", ServerError, "does not serve requests like these"),
        ("wrong", ServerError, "does not serve requests like these"),
    ],
)
def test_what_no_rate_explains_ends_it(status: Status, error: type[ServerError], said: str) -> None:
    with pytest.raises(error, match=said):
        asyncio.run(attempt(Queue(0.0, status).send, terms(), rate=800.0, seed=0))
