"""Which server was measured, as it says itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bench.traffic.identity import deployed, identity
from server.async_client import AsyncClient
from server.config import ServerConfig
from tests.odd_servers import OddTriton


def test_a_deployment_is_told_without_its_places() -> None:
    config = ServerConfig(
        Path("/srv/exports/sd15"), provider="cuda", max_rows=32, cache="/var/cache", more=(("deep", Path("/srv/d")),)
    )
    found = deployed(config.to_json())
    assert (found["checkpoint"], found["provider"], found["max_rows"]) == ("sd15, deep", "cuda", 32)
    assert "/" not in str(found)
    assert deployed(ServerConfig(Path("/srv/x"), name="base").to_json())["checkpoint"] == "base"


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "3", "{}", '{"more": [3], "model": 5}'])
def test_what_is_no_deployment_tells_little(text: str) -> None:
    assert set(deployed(text)) <= {"checkpoint"}


def told(url: str) -> dict[str, Any]:
    async def asked() -> dict[str, Any]:
        async with AsyncClient(url) as client:
            return await identity(client)

    return asyncio.run(asked())


def test_a_server_that_says_less_is_told_as_far_as_it_does() -> None:
    with OddTriton() as server:
        assert told(server.url) == {"name": "odd"}
    with OddTriton(ready=None) as server:
        assert told(server.url) == {}
    assert told("127.0.0.1:1") == {}
