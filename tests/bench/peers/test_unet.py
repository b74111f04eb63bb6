"""The UNet alone."""

import argparse
import sys
from pathlib import Path

import pytest

from bench.peers import program, unet
from engines.errors import EngineError


def test_peers_draw_with_the_same_network(tiny_checkpoint: Path, tiny_export: Path) -> None:
    parser = argparse.ArgumentParser()
    program.add_options(parser)
    given = ["--model", str(tiny_export), "--checkpoint", str(tiny_checkpoint), "--provider", "cpu", "--repeats", "1"]
    wanted = ["--what", "unet", "--peer", "torch_bf16", "--peer", "diffusers_fp32"]
    result = program.run(parser.parse_args([*given, *wanted, "--threads", "1"]))
    assert list(result["peers"]) == ["torch_bf16", "diffusers_fp32"]
    assert result["size"] == (64, 64)
    assert result["tflop"] > 0
    assert list(result["measures"]) == ["ratio torch_bf16 unet", "ratio diffusers_fp32 unet"]


def parsed(tiny_export: Path, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    program.add_options(parser)
    return parser.parse_args(["--what", "unet", "--model", str(tiny_export), "--repeats", "1", *given])


def test_a_peer_that_is_not_installed_is_skipped(tiny_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    found = program.run(parsed(tiny_export, "--provider", "cpu", "--peer", "diffusers_fp32"))
    assert "pip install" in found["skipped"]["diffusers_fp32"]
    assert found["peers"] == {}
    assert found["failures"][0].startswith("diffusers_fp32 was asked for: diffusers cannot be imported")


def test_a_gpu_is_not_compared_with_a_cpu(tiny_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "chosen_provider", lambda name: name)
    with pytest.raises(EngineError, match="ours by tensorrt: give --provider openvino or cpu"):
        program.run(parsed(tiny_export, "--provider", "tensorrt"))
