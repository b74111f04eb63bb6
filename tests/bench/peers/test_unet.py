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


@pytest.mark.parametrize(
    ("ending", "said"),
    [(RuntimeError("no memory\nleft"), "torch_bf16: no memory left"), (KeyboardInterrupt(), "interrupted")],
)
def test_rounds_before_a_failure_are_kept(
    tiny_export: Path, monkeypatch: pytest.MonkeyPatch, ending: BaseException, said: str
) -> None:
    def opened(left: int) -> unet.Opened:
        calls = iter(range(left))

        def call() -> None:
            if next(calls, None) is None:
                raise ending

        return lambda options, fed: call

    peers = {"openvino": opened(5), "torch_bf16": opened(3), "diffusers_fp32": opened(5)}
    monkeypatch.setattr(unet, "PEERS", peers)
    found = program.run(parsed(tiny_export, "--provider", "cpu", "--repeats", "4", "--threads", "1"))
    assert (found["partial"], found["failures"]) == (True, [said])
    counts = {name: len(figure["samples"]) for name, figure in found["measures"].items()}
    # One call of each is not counted.
    all_of_last = {} if said == "interrupted" else {"ratio diffusers_fp32 unet": 4}
    assert counts == {"ratio openvino unet": 4, "ratio torch_bf16 unet": 2, **all_of_last}
