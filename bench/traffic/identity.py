"""Which server was measured, as it says itself: what is known of this machine may be that of a client only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from server.async_client import AsyncClient
from server.errors import ServerError

SECONDS = 5.0
# Of a deployment, what figures depend on and that is no place on its machine.
SAID = (
    *("provider", "plans", "backend", "cuda_graphs", "cpu_precision", "unet_threads", "component_threads", "pinned"),
    *("max_rows", "row_cap", "batch_sizes", "decode_images", "queue_limit", "response_cache_bytes", "vae_tile"),
    *("text_encoder", "unet", "vae_decoder", "vae_encoder", "depth_estimator", "step_seconds"),
)


async def identity(client: AsyncClient) -> dict[str, Any]:
    """Name and version of a Triton, and how our models are deployed on it; as much as it tells, empty for nothing.

    For `environment.server` of a result.
    """
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(SECONDS):
            found |= {name: value for name, value in (await client.told()).items() if value}
            found |= deployed((await client.parameters()).get("deployment", ""))
    except (ServerError, TimeoutError):
        pass
    return found


def deployed(text: str) -> dict[str, Any]:
    """What `server.config.ServerConfig.to_json` wrote, without what is empty or a path; nothing of any other text."""
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(config, Mapping):
        return {}
    checkpoints = [(str(config.get("name") or ""), str(config.get("model") or ""))]
    checkpoints += [(str(one[0]), str(one[-1])) for one in config.get("more") or () if isinstance(one, list) and one]
    names = [name or PurePath(folder).name for name, folder in checkpoints]
    return {"checkpoint": ", ".join(names), **{name: config[name] for name in SAID if config.get(name)}}
