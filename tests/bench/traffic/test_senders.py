"""Shares of a load, and what is told to those who send them."""

from __future__ import annotations

import asyncio
import multiprocessing
import time

import pytest

from bench.serving import Address
from bench.traffic import loops, senders
from bench.traffic.asking import Outcome
from bench.traffic.loops import Halt
from bench.traffic.mix import Asked, Mix
from bench.traffic.senders import Sent, Share


def test_garbage_is_looked_for_before_a_load_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would make the first requests late, and count as the server's."""
    happened = []
    monkeypatch.setattr(senders, "settle", lambda: happened.append("settled"))

    def begin() -> float:
        happened.append("begun")
        return time.monotonic()

    share = Share(Address("127.0.0.1:1"), Mix(), times=(0.0,))
    sent = asyncio.run(senders.send_share(share, Halt(), begin))
    assert [outcome.status for outcome in sent.outcomes] == ["disconnected"]
    assert happened == ["settled", "begun"]


def test_what_is_open_when_a_load_ends_early_is_kept_without_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    halt = Halt()

    async def ask(connections: object, asked: Asked, intended: float, *rest: object) -> Outcome:
        if asked.number == 2:
            halt.reason = "interrupted"
        await asyncio.sleep(60 if asked.number == 1 else 0)
        return Outcome(asked, "ok", intended, intended, time.monotonic())

    monkeypatch.setattr(loops, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(senders, "ask", ask)
    share = Share(Address("127.0.0.1:1"), Mix(), times=(0.0, 0.01, 0.02, 5.0))
    sent = asyncio.run(senders.send_share(share, halt, time.monotonic))
    assert [outcome.asked.number for outcome in sent.outcomes] == [0, 2]
    ((asked, due),) = sent.unfinished
    assert asked.number == 1
    assert due - sent.outcomes[0].intended == pytest.approx(0.01)


def test_an_interrupt_keeps_what_a_process_has_sent_that_is_gone() -> None:
    halt = Halt()
    halt.reason = "interrupted"
    ours, theirs = zip(*(multiprocessing.Pipe() for _ in range(2)), strict=True)
    done, working = theirs
    open_still = (Mix().asked(0), 0.5)
    done.send(Sent(unfinished=[open_still], cpu_seconds=1.0))
    done.close()

    def answer() -> None:
        assert working.recv() == "interrupted"
        working.send(Sent(reason="interrupted", cpu_seconds=2.0))

    async def gathered() -> Sent:
        # The first to be looked at works on, so that the other is told after it has gone.
        sent, _ = await asyncio.gather(
            asyncio.to_thread(senders._gathered, [ours[1], ours[0]], halt), asyncio.to_thread(answer)
        )
        return sent

    sent = asyncio.run(gathered())
    assert (sent.reason, sent.cpu_seconds, sent.unfinished) == ("interrupted", 3.0, [open_still])
