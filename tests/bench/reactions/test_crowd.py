"""A server with more to do than it can, where that server does not keep up its part."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from bench.reactions import crowd
from bench.traffic.asking import Connections, Outcome
from server.errors import ServerError


def test_a_guest_without_all_of_its_companions_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answered(connections: Any, number: int, steps: int) -> Outcome:
        if number == 103:
            raise ServerError("companion 103 was refused")
        begun = time.monotonic()
        await asyncio.sleep(0.01)
        return Outcome(crowd._asked(number, steps), "ok", begun, begun, time.monotonic())

    async def guests() -> None:
        async with Connections("localhost:1") as connections:
            await crowd.guests(connections, 1, {})

    monkeypatch.setattr(crowd, "_answered", answered)
    with pytest.raises(ServerError, match="companion 103"):
        asyncio.run(guests())
