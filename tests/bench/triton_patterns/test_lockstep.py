"""Requests in lock step: their pictures are the server's own."""

from pathlib import Path

import numpy as np
import pytest

from bench.peers.contestant import fields_of
from bench.peers.order import Order
from bench.triton_patterns.lockstep import Lockstep
from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from server.errors import InvalidRequest
from server.request import Request


@pytest.fixture(scope="module")
def lockstep(tiny_export: Path) -> Lockstep:
    return Lockstep(open_checkpoints(ServerConfig(tiny_export, provider="cpu", unet_threads=1)))


def request(lockstep: Lockstep, seed: int, steps: int, sampler: str = "euler", side: int = 64) -> Request:
    fields = fields_of(Order((f"a {seed}",), (seed,), steps, 2.0, side, side))[0] | {"sampler": sampler}
    return lockstep.parse({k: [v.encode() if isinstance(v, str) else v] for k, v in fields.items()})


def test_pictures_come_in_order_and_as_alone(lockstep: Lockstep) -> None:
    asked = [
        *(request(lockstep, 1, 3), request(lockstep, 2, 2), request(lockstep, 3, 3, "euler_ancestral")),
        *(request(lockstep, 4, 2, side=128), request(lockstep, 5, 3)),
    ]
    together = lockstep.draw(asked)
    assert [picture.shape for picture in together] == [(64, 64, 3)] * 3 + [(128, 128, 3), (64, 64, 3)]
    for picture, one in zip(together, asked, strict=True):
        (alone,) = lockstep.draw([one])
        assert np.abs(picture.astype(int) - alone).max() <= 1
    assert len({picture.tobytes() for picture in together}) == 5


def test_a_request_at_fault_is_told(lockstep: Lockstep) -> None:
    with pytest.raises(InvalidRequest, match="num_inference_steps"):
        request(lockstep, 1, 0)
    assert lockstep.draw([]) == []
