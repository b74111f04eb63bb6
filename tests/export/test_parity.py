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

from engines.catalog import components_of
from engines.component import Component, PipelineSpec, Precision, TensorSpec
from export.checkpoint import Checkpoint
from export.errors import ParityError
from export.parity import LIMITS, UNET_LIMITS, Raised, compare, references
from export.to_onnx import example_inputs
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
    monkeypatch: pytest.MonkeyPatch, runner: Doubler, network: nn.Module, *, precision: Precision = "fp32"
) -> dict[str, float]:
    monkeypatch.setattr("export.parity.open_runner", lambda component, folder, provider: runner)
    component = Component("vae_decoder", "x.onnx", DECODER.inputs, DECODER.outputs, precision)
    return compare(references(network, component, [(16, 8), (8, 8), (64, 64)]), component, Path())


def test_the_smallest_resolution_is_tried_with_two_rows_and_others_where_that_is_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = Doubler()
    assert compare_with(monkeypatch, runner, Double()) == {
        "max_abs": 0.0,
        "mean_abs": 0.0,
        "max_scaled": 0.0,
        "limit": 1e-4,
    }
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
    with pytest.raises(
        ParityError, match="vae_decoder gives values that are not finite in image for 8x8 latents; export with fp32"
    ):
        compare_with(monkeypatch, Doubler(error), Double())


def test_a_reference_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError, match="not finite"):
        compare_with(monkeypatch, Doubler(), Undefined())


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_encoder", "vae_decoder"])
def test_another_network_than_the_exported_one_is_refused(tiny_checkpoint: Path, tiny_export: Path, name: str) -> None:
    component = PipelineSpec.read(tiny_export).component(name)
    network = load_component(Checkpoint.open(str(tiny_checkpoint)), name)
    compare(references(network, component, [(8, 8)]), component, tiny_export)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    with pytest.raises(ParityError, match=rf"^{name} differs from torch by "):
        compare(references(network, component, [(8, 8)]), component, tiny_export)


def test_large_values_may_differ_by_as_much_of_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of text encoders reach hundreds, where a half has no third digit."""

    class Hundredfold(nn.Module):
        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            return latent * 2 + 1000

    found = compare_with(monkeypatch, Doubler(1000.05), Hundredfold())
    assert found["max_abs"] == pytest.approx(0.05, rel=0.02)
    assert found["max_scaled"] == pytest.approx(5e-5, rel=0.02)


def test_every_output_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return latent, latent + 1

    class Runs(Doubler):
        def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
            return {"first": feeds["latent"], "second": feeds["latent"]}

    monkeypatch.setattr("export.parity.open_runner", lambda component, folder, provider: Runs())
    outputs = tuple(TensorSpec(name, "float32", LATENT.shape) for name in ("first", "second"))
    component = Component("vae_decoder", "x.onnx", (LATENT,), outputs)
    with pytest.raises(ParityError, match=r"differs from torch by 1, more"):
        compare(references(Two(), component, [(8, 8)]), component, Path())


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_encoder", "vae_decoder"])
def test_the_reference_of_halved_weights_is_that_of_the_same_weights_in_fp32(tiny_checkpoint: Path, name: str) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    spec = components_of(checkpoint.family, checkpoint.task, checkpoint.widths)[name]
    feeds = example_inputs(spec[0], {"rows": 2, "tokens": 77, "height": 8, "width": 16})
    network = load_component(checkpoint, name, "fp16")
    with torch.no_grad(), Raised():
        raised = network(**feeds)
    assert {p.dtype for p in network.parameters()} == {torch.float16}
    with torch.no_grad():
        rounded, exact = network(**feeds), network.float()(**feeds)
    torch.testing.assert_close(raised, exact, rtol=0, atol=1e-6)
    assert not torch.equal(rounded, exact)


def test_lower_precision_has_wider_limits() -> None:
    assert UNET_LIMITS["fp32"] < UNET_LIMITS["fp16"] < UNET_LIMITS["bf16"]
    assert all(LIMITS["fp32"][name] < LIMITS["fp16"][name] < LIMITS["bf16"][name] for name in LIMITS["fp32"])
