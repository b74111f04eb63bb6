"""What is drawn, as the options say."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.peers import pictures, program
from bench.peers.contestant import fields_of
from bench.peers.pictures import plan_of
from engines.component import PipelineSpec
from engines.errors import EngineError


@pytest.fixture
def spec(fake_export: Path) -> PipelineSpec:
    return PipelineSpec.read(fake_export)


@pytest.fixture
def options() -> Callable[..., argparse.Namespace]:
    def parsed(*given: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        program.add_options(parser)
        return parser.parse_args(given)

    return parsed


def test_the_batch_begins_with_the_single_picture(
    options: Callable[..., argparse.Namespace], spec: PipelineSpec
) -> None:
    found = plan_of(options("--batch", "3", "--size", "128", "--setting", "mixed", "--setting", "single"), spec)
    single, batch = found.orders["single"], found.orders["batch"]
    assert batch.singles()[0] == single
    assert (single.height, len(batch.prompts), found.settings) == (128, 3, ["single", "mixed"])
    assert found.load(0).orders != found.load(1).orders
    assert len(fields_of(batch)) == 3


@pytest.mark.parametrize(
    "given",
    [
        *(("--steps", "0"), ("--repeats", "0"), ("--batch", "-1"), ("--guidance", "1"), ("--mix", "4,0")),
        *(("--rate", "-1"), ("--size", "77"), ("--concurrency", "0")),
    ],
)
def test_bad_numbers_are_told(
    options: Callable[..., argparse.Namespace], spec: PipelineSpec, given: tuple[str, ...]
) -> None:
    with pytest.raises(EngineError, match=given[0]):
        plan_of(options(*given), spec)


def test_a_peer_of_the_other_kind_is_told(options: Callable[..., argparse.Namespace]) -> None:
    with pytest.raises(EngineError, match="--peer torch_bf16 is none of --what pictures, which has diffusers_fp32"):
        program.run(options("--peer", "torch_bf16"))
    with pytest.raises(SystemExit):
        options("--peer-python", "nobody=/bin/python")
    assert options("--peer-python", "openvino_genai=/x=y").peer_python == [("openvino_genai", "/x=y")]
    assert pictures.PEERS[-2:] == ("triton_serial", "triton_static")
