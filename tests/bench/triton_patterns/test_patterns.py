"""The patterns on the real Triton."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from bench.peers.contestant import Load, fields_of
from bench.peers.order import Order
from bench.peers.servers import pattern_server
from bench.triton_patterns.lockstep import Lockstep
from bench.triton_patterns.patterns import PATTERNS, PatternServer
from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from server.errors import InvalidRequest

ORDER = Order(("a", "b", "c"), (1, 2, 3), steps=2, guidance=2.0, height=64, width=64)


def test_patterns_differ_in_their_batches_alone(fake_export: Path) -> None:
    serial, static = (pattern.config("{}") for pattern in PATTERNS.values())
    assert "max_batch_size: 1\ndynamic_batching { max_queue_delay_microseconds: 100000 }" in serial
    assert serial.replace("triton_serial", "triton_static").replace("size: 1\n", "size: 8\n") == static
    assert '{ name: "seed" data_type: TYPE_INT64 dims: [ 1 ] }' in serial
    server = PatternServer(PATTERNS["triton_static"], ServerConfig(fake_export))
    assert server.models == ["triton_static"]
    assert (server.config.max_rows, server.config.component_threads) == (16, len(os.sched_getaffinity(0)))


@pytest.mark.triton
def test_a_batch_is_answered_with_the_pictures_that_ours_are(tiny_export: Path, tmp_path: Path) -> None:
    config = ServerConfig(tiny_export, provider="cpu", unet_threads=1)
    lockstep = Lockstep(open_checkpoints(config))
    sent = [{k: [v.encode() if isinstance(v, str) else v] for k, v in one.items()} for one in fields_of(ORDER)]
    expected = lockstep.draw([lockstep.parse(one) for one in sent])
    with pattern_server("triton_static", config, tmp_path / "logs" / "triton.log") as served:
        begun = time.monotonic()
        drawn = served.draw(ORDER, keep=True)
        # Three wait for five more in vain.
        assert time.monotonic() - begun > 0.09
        assert drawn.pixels is not None
        assert np.abs(drawn.pixels.astype(int) - np.stack(expected)).max() <= 1
        outcomes = served.serve(Load([*ORDER.singles(), *_of_steps(0)], concurrency=4))
        assert [outcome.status for outcome in outcomes] == ["ok", "ok", "ok", "error"]
        assert "num_inference_steps" in outcomes[-1].message
        with pytest.raises(InvalidRequest, match="num_inference_steps"):
            served.draw(*_of_steps(0))


def _of_steps(steps: int) -> list[Order]:
    return [Order(("d",), (4,), steps, 2.0, 64, 64)]
