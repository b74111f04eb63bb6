"""LoadGen itself, in its own process, answered here."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from bench.loadgen.process import LoadGen, Play, Sample
from bench.loadgen.rules import Rules, Scenario, settings_of
from bench.loadgen.summary import read_summary
from server.errors import ServerError

SHORT = Rules(duration=0.2, samples=12, prompts=5, percentile=0.9, latency=1.0)


def play(scenario: Scenario, folder: Path, rules: Rules = SHORT) -> Play:
    return Play(scenario, "PerformanceOnly", rules.prompts, folder, settings_of(scenario, rules, 40.0))


def test_every_query_is_answered_and_judged(tmp_path: Path) -> None:
    async def answered() -> list[Sample]:
        found: list[Sample] = []
        async with LoadGen(play("Server", tmp_path)) as loadgen:
            async for samples in loadgen.queries():
                found += samples
                for sample in samples:
                    loadgen.complete(sample.query, bytes(32))
        return found

    found = asyncio.run(answered())
    summary = read_summary(tmp_path)
    assert len(found) >= SHORT.samples
    assert {sample.prompt for sample in found} <= set(range(SHORT.prompts))
    assert 10 < summary.samples_per_second("Server") < 120
    assert 0 < summary.percentiles["p50"] < summary.percentiles["p99"] < 1000


def test_it_can_be_left_while_it_waits(tmp_path: Path) -> None:
    """LoadGen itself cannot be stopped."""

    async def left() -> tuple[int, bool]:
        async with LoadGen(play("Offline", tmp_path)) as loadgen:
            issued = len(await anext(loadgen.queries()))
        return issued, loadgen.alive

    assert asyncio.run(left()) == (12, False)


def test_its_death_is_told(tmp_path: Path) -> None:
    async def killed() -> None:
        async with LoadGen(replace(play("SingleStream", tmp_path), settings={"no_such_setting": 1})) as loadgen:
            async for _ in loadgen.queries():
                pass

    with pytest.raises(ServerError, match="LoadGen ended before its run did"):
        asyncio.run(killed())
