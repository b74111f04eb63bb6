"""A judge that looks in order, and trials that end as soon as they may."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

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


def test_a_judge_does_not_give_up_at_one_stretch_of_late_requests() -> None:
    stretch = [not 20 <= i < 33 for i in range(150)]
    judge = Judge(0.95, 600, together=13.0)
    judged(judge, stretch)
    assert len(judge.in_time) == 150
    assert judge.enough is None
    # As many that are spread like those of independent requests, and were looked at alone, would be too many.
    judge = Judge(0.95, 600, together=13.0)
    judged(judge, [i % 5 != 0 for i in range(150)])
    assert judge.enough is False


def test_a_judge_looks_first_when_there_are_parts_enough() -> None:
    judge = Judge(0.95, 2400, together=50.0)
    judged(judge, [False] * 599)
    assert judge.enough is None
    judged(judge, [False])
    assert judge.enough is False


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


def terms(least_seconds: float = 0.2, most: int = 160, limit: float = 0.1, longest: float = 0.02) -> Terms:
    return Terms(Mix(), lambda kind: limit, longest, 0.95, least_seconds, most)


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
    made = asyncio.run(attempt(queue.send, terms(least_seconds=0.6, limit=30.0, longest=0.05), rate=400.0, seed=0))
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


def test_trials_share_neither_arrivals_nor_pictures() -> None:
    once, again = terms(), replace(terms(), mix=Mix(salt=2**32 - 1))
    gaps = {tuple(round(rate * time, 6) for time in once.times(rate, 0)[:3]) for rate in (1.0, 2.0, 4.0)}
    assert len(gaps) == 3
    assert once.times(2.0, 1) == again.times(2.0, 1)
    one, other = (kept.drawn(2.0, 0).asked(0) for kept in (once, again))
    assert other.fields["seed"] == (int(str(one.fields["seed"])) - 1) % 2**32
    assert {**one.fields, "seed": 0} == {**other.fields, "seed": 0}
    assert once.drawn(2.0, 0).seed != once.drawn(4.0, 0).seed


class Failing(Queue):
    """Answers from a cache, but for every so many requests, at which it fails."""

    def __init__(self, every: int) -> None:
        super().__init__(0.0)
        self._every = every

    async def send(self, asked: Asked, intended: float) -> Outcome:
        outcome = await super().send(asked, intended)
        wrong = asked.number % self._every == 0
        return replace(outcome, status="error" if wrong else "ok", message="no memory" if wrong else "", cached=True)


def test_errors_and_cached_answers_are_counted() -> None:
    made = asyncio.run(attempt(Failing(30).send, terms(), rate=800.0, seed=0))
    assert made.outcomes["error"] == len(made.errors) > 1
    assert set(made.errors) == {"no memory"}
    assert made.cached == sum(made.outcomes.values())
    assert made.realised == pytest.approx(800.0, rel=0.2)


def test_more_errors_than_may_be_late_end_it() -> None:
    with pytest.raises(ServerError, match=r"failed at \d+ of \d+ requests, more than may be late \(no memory\)"):
        asyncio.run(attempt(Failing(16).send, terms(), rate=800.0, seed=0))


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
