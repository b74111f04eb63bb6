"""Loads without a server."""

from __future__ import annotations

import asyncio
import time

import pytest

from bench.traffic import loops
from bench.traffic.arrivals import Bursts
from bench.traffic.asking import Outcome, Status
from bench.traffic.latencies import percentile
from bench.traffic.loops import Halt
from bench.traffic.mix import Asked, Mix


def test_an_open_loop_sends_in_time_though_nothing_is_answered() -> None:
    times = [0.01 * n for n in range(20)]

    async def send(asked: Asked, intended: float) -> Outcome:
        sent = time.monotonic()
        await asyncio.sleep(0.3)
        return Outcome(asked, "ok", intended, sent, time.monotonic())

    begun = time.monotonic()
    outcomes = asyncio.run(loops.open_loop(Mix().requests(), times, send))
    assert [o.asked.number for o in outcomes] == list(range(20))
    assert [o.intended - outcomes[0].intended for o in outcomes] == pytest.approx(times)
    assert all(o.sent >= o.intended for o in outcomes)
    assert time.monotonic() - begun < 20 * 0.3 / 2


def test_latency_counts_from_the_intended_sending() -> None:
    """A client that comes late to send must not make the server look quick."""

    async def send(asked: Asked, intended: float) -> Outcome:
        time.sleep(0.02)
        return Outcome(asked, "ok", intended, time.monotonic(), time.monotonic())

    outcomes = asyncio.run(loops.open_loop(Mix().requests(), [0.0] * 5, send))
    assert [o.seconds >= 0.02 * (n + 1) - 0.001 for n, o in enumerate(outcomes)] == [True] * 5


def test_a_closed_loop_keeps_so_many_open() -> None:
    open_now, most = 0, 0

    async def send(asked: Asked, intended: float) -> Outcome:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.001 * (asked.number % 3))
        open_now -= 1
        return Outcome(asked, "ok", intended, intended, time.monotonic())

    outcomes = asyncio.run(loops.closed_loop(Mix().requests(50), 4, send))
    assert most == 4
    assert [o.asked.number for o in outcomes] == list(range(50))


def test_a_closed_loop_ends_with_its_time() -> None:
    async def send(asked: Asked, intended: float) -> Outcome:
        await asyncio.sleep(0.01)
        return Outcome(asked, "ok", intended, intended, time.monotonic())

    outcomes = asyncio.run(loops.closed_loop(Mix().requests(), 2, send, seconds=0.1))
    assert 2 <= len(outcomes) <= 24


class Stalled:
    """A server that takes one millisecond for each request in turn, and once stops for a while."""

    def __init__(self, at: int, seconds: float) -> None:
        self._turn = asyncio.Lock()
        self._at, self._seconds = at, seconds

    async def send(self, asked: Asked, intended: float) -> Outcome:
        sent = time.monotonic()
        async with self._turn:
            await asyncio.sleep(self._seconds if asked.number == self._at else 0.001)
        return Outcome(asked, "ok", intended, sent, time.monotonic())


def test_a_stall_counts_for_all_that_would_have_come() -> None:
    """An open loop sees a stall in every percentile that it touches; a closed one counts it once."""

    async def opened() -> list[Outcome]:
        return await loops.open_loop(Mix().requests(), Bursts(100, 0.01).times(0, count=200), Stalled(60, 0.8).send)

    async def closed() -> list[Outcome]:
        return await loops.closed_loop(Mix().requests(200), 1, Stalled(60, 0.8).send)

    seen = [outcome.seconds for outcome in asyncio.run(opened())]
    assert percentile(seen, 0.99) > 0.6
    assert percentile(seen, 0.75) > 0.1
    omitted = [outcome.seconds for outcome in asyncio.run(closed())]
    assert percentile(omitted, 0.99) < 0.5 < 0.8 <= max(omitted)


def test_a_load_ends_soon_when_the_server_has_gone() -> None:
    async def gone(asked: Asked, intended: float) -> Outcome:
        status: Status = "ok" if asked.number < 5 else "disconnected"
        return Outcome(asked, status, intended, intended, time.monotonic(), "nobody is there")

    async def load(opened: bool) -> tuple[list[Outcome], Halt]:
        halt = Halt(patience=0.1)
        if opened:
            times = Bursts(100).times(0, count=10_000)
            return await loops.open_loop(Mix().requests(), times, halt.watched(gone), halt=halt), halt
        return await loops.closed_loop(Mix().requests(), 2, halt.watched(gone, 0.01), halt=halt), halt

    for opened in (True, False):
        begun = time.monotonic()
        outcomes, halt = asyncio.run(load(opened))
        assert time.monotonic() - begun < 20
        assert halt.reason is not None
        assert "s: nobody is there" in halt.reason
        assert [outcome.status for outcome in outcomes[:6]] == ["ok"] * 5 + ["disconnected"]


def test_one_broken_connection_is_no_end() -> None:
    patient, asked = Halt(patience=0.0), Mix().asked(0)
    patient.note(Outcome(asked, "ok", 0, 0, 0))
    assert patient.reason is None
    patient = Halt(patience=60)
    patient.note(Outcome(asked, "disconnected", 0, 0, 0))
    patient.note(Outcome(asked, "ok", 0, 0, 0))
    assert patient.reason is None


def test_a_client_that_leaves_says_nothing_of_the_server() -> None:
    halt, asked = Halt(patience=0.0), Mix().asked(0)
    halt.note(Outcome(asked, "left", 0, 0, 0))
    assert halt.reason is None
    halt = Halt(patience=0.05)
    halt.note(Outcome(asked, "disconnected", 0, 0, 0))
    halt.note(Outcome(asked, "left", 0, 0, 0))
    time.sleep(0.1)
    halt.note(Outcome(asked, "disconnected", 0, 0, 0))
    assert halt.reason is not None


def test_what_is_open_when_a_load_is_interrupted_has_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "GRACE_SECONDS", 0.05)
    halt = Halt()

    async def never(asked: Asked, intended: float) -> Outcome:
        if asked.number == 3:
            halt.reason = "interrupted"
        await asyncio.sleep(0 if asked.number < 2 else 60)
        return Outcome(asked, "ok", intended, intended, time.monotonic())

    begun = time.monotonic()
    outcomes = asyncio.run(loops.open_loop(Mix().requests(), [0.01 * n for n in range(9)], never, halt=halt))
    assert [outcome.asked.number for outcome in outcomes] == [0, 1]
    assert time.monotonic() - begun < 20
