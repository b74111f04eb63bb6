"""Queries whose answers cannot be kept: each is completed all the same, since LoadGen would wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from bench.loadgen.answering import Answering
from bench.loadgen.process import LoadGen, Sample
from bench.traffic.echo import answered
from tests.odd_servers import OddTriton


class Completed:
    """What LoadGen is told."""

    def __init__(self) -> None:
        self.queries: list[tuple[int, bytes]] = []

    def complete(self, query: int, answer: bytes = b"") -> None:
        self.queries.append((query, answer))


def no_images(request: Any) -> Any:
    request.inputs.add(name="num_images", datatype="INT64", shape=[1])
    request.raw_input_contents.append(bytes(8))
    return answered(request)


@pytest.mark.parametrize(
    ("infer", "said", "ends"), [(answered, "an image cannot be kept: ", True), (no_images, "the answer ", False)]
)
def test_a_query_is_completed_whatever_happens(
    infer: Callable[[Any], Any], said: str, ends: bool, tmp_path: Path
) -> None:
    loadgen = Completed()

    async def asked(url: str) -> Answering:
        async with Answering(url, [{"prompt": "a circle"}], pictures=tmp_path / "none") as answering:
            await answering._answer(cast(LoadGen, loadgen), Sample(7, 0), 0.0)
        return answering

    with OddTriton(infer) as server:
        answering = asyncio.run(asked(server.url))
    assert loadgen.queries == [(7, b"")]
    assert answering.answered[0].failure.startswith(said)
    assert bool(answering.stopped) is ends
