"""The UNet alone."""

import argparse
from pathlib import Path

from bench.peers import program


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
