"""A component passes only when it gives what torch gives."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from engines.component import Component, PipelineSpec, TensorSpec
from export.checkpoint import Checkpoint
from export.errors import ParityError
from export.parity import LIMITS, compare
from export.wrappers import load_component

IMAGE = TensorSpec("image", "float32", ("rows", 3, "8*height", "8*width"))
LATENT = TensorSpec("latent", "float32", ("rows", 3, "height", "width"))
DECODER = Component("vae_decoder", "vae_decoder.onnx", (LATENT,), (TensorSpec("image", "float32", LATENT.shape),))


class Double(nn.Module):
    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * 2


class Undefined(nn.Module):
    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * math.nan


class Doubler:
    """Stands in for an exported file that doubles its input, with an error."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.shapes: list[tuple[int, ...]] = []

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        self.shapes.append(feeds["latent"].shape)
        return {"image": feeds["latent"] * 2 + np.float32(self.error)}


def compare_with(
    monkeypatch: pytest.MonkeyPatch, runner: Doubler, network: nn.Module, *, precision: str = "fp32"
) -> dict[str, float]:
    monkeypatch.setattr("export.parity.open_runner", lambda component, folder, provider: runner)
    component = Component("vae_decoder", "x.onnx", DECODER.inputs, DECODER.outputs, precision)
    return compare(network, component, Path(), [(8, 8), (16, 8)])


def test_every_resolution_is_tried_and_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Doubler()
    assert compare_with(monkeypatch, runner, Double()) == {"max_abs": 0.0, "mean_abs": 0.0, "limit": 1e-4}
    assert runner.shapes == [(2, 3, 8, 8), (1, 3, 16, 8)]


def test_differences_below_the_limit_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compare_with(monkeypatch, Doubler(5e-5), Double())
    assert found["max_abs"] == pytest.approx(5e-5, rel=0.02)
    assert found["mean_abs"] == pytest.approx(5e-5, rel=0.02)


def test_differences_above_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError, match=r"^vae_decoder differs from torch by 0\.01, more than 0\.0001; use the"):
        compare_with(monkeypatch, Doubler(0.01), Double())


def test_half_precision_has_limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_with(monkeypatch, Doubler(0.01), Double(), precision="fp16")["limit"] == 4e-2
    with pytest.raises(ParityError, match=r"by 0\.1, more than 0\.04"):
        compare_with(monkeypatch, Doubler(0.1), Double(), precision="fp16")


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    with pytest.raises(ParityError, match="vae_decoder gives values that are not finite at 8x8; export with fp32"):
        compare_with(monkeypatch, Doubler(error), Double())


def test_a_reference_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError, match="not finite"):
        compare_with(monkeypatch, Doubler(), Undefined())


@pytest.mark.parametrize("name", LIMITS["fp32"])
def test_another_network_than_the_exported_one_is_refused(tiny_checkpoint: Path, tiny_export: Path, name: str) -> None:
    component = PipelineSpec.read(tiny_export).component(name)
    network = load_component(Checkpoint.open(str(tiny_checkpoint)), name)
    compare(network, component, tiny_export, [(8, 8)])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    with pytest.raises(ParityError, match=rf"^{name} differs from torch by "):
        compare(network, component, tiny_export, [(8, 8)])


def test_every_component_has_a_limit_in_every_precision(tiny_export: Path) -> None:
    components = set(PipelineSpec.read(tiny_export).components)
    assert {precision: set(limits) for precision, limits in LIMITS.items()} == {
        "fp32": components,
        "fp16": components,
    }
