"""When the metrics of a server are read."""

from __future__ import annotations

import asyncio

import pytest

from bench.traffic import timelines
from bench.traffic.timelines import watching
from server.errors import ServerError


def test_metrics_are_read_before_and_after_a_load_however_seldom_between(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(9))
    monkeypatch.setattr(timelines, "read_metrics", lambda url: {"n": float(next(counter))})

    async def load() -> list[float]:
        async with watching("http://nobody", 60.0) as watched:
            assert [samples["n"] for _, samples in watched.readings] == [0]
            next(counter)
        return [samples["n"] for _, samples in watched.readings]

    assert asyncio.run(load()) == [0, 2]


def test_metrics_that_cannot_be_read_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(url: str) -> dict[str, float]:
        asked.append(url)
        raise ServerError("no metrics there")

    monkeypatch.setattr(timelines, "read_metrics", refuse)

    async def load() -> str | None:
        async with watching("http://nobody", 0.0) as watched:
            await asyncio.sleep(0.01)
        return watched.problem

    assert asyncio.run(load()) == "the server's metrics were not read: no metrics there"
    assert len(asked) == 1
