"""Peers draw the same picture as ours; those that compile or convert for long are slow tests."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.peers.comparison import LEAST_PSNR
from bench.peers.contestant import Drawn
from bench.peers.diffusers_drawer import open_drawer
from bench.peers.order import Order, Setup
from bench.peers.pictures import reference
from bench.peers.process import opened
from engines.component import Precision
from engines.verify import psnr
from server.config import ServerConfig

ORDER = Order(("a red circle", "a blue star"), (3, 4), steps=3, guidance=2.0, height=64, width=64)


def setup(checkpoint: Path, work: Path, precision: Precision = "fp32") -> Setup:
    assert precision != "int8"
    return Setup(str(checkpoint), precision, "cpu", os.cpu_count() or 1, str(work), 64, 64, ORDER.guidance)


def test_diffusers_draws_our_pictures(tiny_checkpoint: Path, tiny_export: Path, tmp_path: Path) -> None:
    pixels = np.frombuffer(open_drawer(setup(tiny_checkpoint, tmp_path)).draw(ORDER), np.uint8).reshape(2, 64, 64, 3)
    config = ServerConfig(tiny_export, provider="cpu")
    for picture, expected in zip(pixels, reference(config, ORDER), strict=True):
        assert psnr(picture, expected) > LEAST_PSNR["fp32"]
    (other,) = reference(config, replace(ORDER.singles()[0], seeds=(5,)))
    assert psnr(pixels[0], other) < LEAST_PSNR["int8"]


def drawn_by(name: str, checkpoint: Path, work: Path, precision: Precision) -> Drawn:
    order = replace(ORDER, height=128, width=128)
    told = replace(setup(checkpoint, work, precision), height=128, width=128)
    with opened(name, sys.executable, told, work / "log", 900) as peer:
        return peer.draw(order, keep=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"), [("openvino_genai", "fp32"), ("diffusers_bf16", "bf16"), ("compiled_bf16", "bf16")]
)
def test_peers_in_their_process_draw_our_pictures(
    embedded_export: Path, tmp_path: Path, name: str, precision: Precision
) -> None:
    checkpoint = Path(__file__).parents[3] / "export" / "embedded" / "checkpoint"
    drawn = drawn_by(name, checkpoint, tmp_path, precision)
    assert drawn.pixels is not None
    expected = reference(ServerConfig(embedded_export), replace(ORDER, height=128, width=128))
    for picture, other in zip(drawn.pixels, expected, strict=True):
        assert psnr(picture, other) > LEAST_PSNR[precision]
