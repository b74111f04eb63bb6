"""Weights keep their names: exchanged A -> B -> A, in ONNX, and as TensorRT-RTX names what can be exchanged."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from engines.component import Component, Precision, TensorSpec
from engines.precision import Island, PrecisionPlan, plan_for
from engines.refit import RefitMap
from engines.runner import open_runner
from export.checkpoint import Checkpoint
from export.to_onnx import example_inputs, export_onnx
from export.wrappers import load_component

Arrays = dict[str, npt.NDArray[Any]]
# A component; the folder and the tensors of one set of weights, and of another.
Two = tuple[Component, Path, Arrays, Path, Arrays]
SIZES = {"rows": 2, "tokens": 77, "height": 8, "width": 8}


def map_of(folder: Path, name: str = "unet") -> RefitMap:
    return RefitMap.read(folder / f"{name}.weights.json")


def outputs(component: Component, folder: Path) -> list[bytes]:
    feeds = {name: tensor.numpy() for name, tensor in example_inputs(component.inputs, SIZES).items()}
    return [array.tobytes() for array in open_runner(component, folder, "cpu").infer(feeds).values()]


def exchanged(folder: Path, into: Path, tensors: Arrays) -> Path:
    """The graph of `folder` with other weights, in a folder of its own."""
    weights = map_of(folder).weights(tensors)
    model = onnx.load(folder / "unet.onnx")
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            assert list(initializer.dims) == list(weights[initializer.name].shape)
            initializer.CopyFrom(numpy_helper.from_array(weights.pop(initializer.name), initializer.name))
    assert not weights
    into.mkdir()
    onnx.save(model, into / "unet.onnx")
    map_of(folder).write(into / "unet.weights.json")
    return into


def state(network: nn.Module) -> Arrays:
    return {name.removeprefix("network."): tensor.float().numpy() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def two(
    unets: dict[Precision, tuple[Component, Path]], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Two:
    """One UNet in fp16 with two sets of weights, each exported by itself."""
    component, first = unets["fp16"]
    network = load_component(Checkpoint.open(str(tiny_checkpoint)), "unet", "fp16")
    tensors = state(network)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += (torch.randn(parameter.shape, generator=generator) * 0.02).half()
    second = tmp_path_factory.mktemp("second")
    export_onnx(network, component.inputs, component.outputs, second / "unet.onnx", plan_for("sd2", "unet", "fp16"))
    return component, first, tensors, second, state(network)


def test_a_b_a_gives_back_a_bit_for_bit(two: Two, tmp_path: Path) -> None:
    component, first, first_tensors, second, second_tensors = two
    there = exchanged(first, tmp_path / "there", second_tensors)
    back = exchanged(there, tmp_path / "back", first_tensors)
    assert outputs(component, there) == outputs(component, second) != outputs(component, first)
    assert outputs(component, back) == outputs(component, first)


def test_what_a_lora_changes_can_be_exchanged_alone(two: Two, tmp_path: Path) -> None:
    component, first, tensors, *_ = two
    touched = {name: array for name, array in tensors.items() if name.endswith(("to_q.weight", "to_v.weight"))}
    rng = np.random.default_rng(0)
    deltas = {name: rng.normal(size=(len(w), 4)) @ rng.normal(size=(4, w.shape[1])) for name, w in touched.items()}
    merged = exchanged(first, tmp_path / "merged", {name: w + 0.1 * deltas[name] for name, w in touched.items()})
    assert outputs(component, merged) != outputs(component, first)
    assert outputs(component, exchanged(merged, tmp_path / "base", touched)) == outputs(component, first)


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_encoder", "vae_decoder"])
def test_every_tensor_of_a_component_has_a_weight_of_its_own(
    tiny_checkpoint: Path, tiny_export: Path, name: str
) -> None:
    refit = map_of(tiny_export, name)
    tensors = state(load_component(Checkpoint.open(str(tiny_checkpoint)), name))
    assert {target.tensor for target in refit.targets} | set(refit.absent) == set(tensors)
    assert len({target.weight for target in refit.targets}) == len(refit.targets)
    other_half = {"vae_encoder": ("decoder.", "post_quant"), "vae_decoder": ("encoder.", "quant_conv")}.get(name, ())
    assert all(tensor.startswith(other_half) for tensor in refit.absent)
    graph = onnx.load(tiny_export / f"{name}.onnx")
    stored = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.graph.initializer}
    for weight, array in refit.weights(tensors).items():
        np.testing.assert_array_equal(stored[weight], array)


class Shared(nn.Module):
    """One weight as it is, transposed, and for a convolution of its own; another that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.weight = nn.Parameter(torch.arange(9.0).reshape(3, 3))
        self.network.unused = nn.Parameter(torch.zeros(3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        weight = self.network.weight
        assert isinstance(weight, torch.Tensor)
        return (image @ weight + image @ weight.T).float()


def test_a_weight_that_is_used_in_two_ways_is_there_twice(tmp_path: Path) -> None:
    specs = (TensorSpec("image", "float32", ("rows", 3)),)
    plan = PrecisionPlan("fp32", (Island("whole", ("*",), (), "a test"),))
    export_onnx(Shared(), specs, (TensorSpec("sum", "float32", ("rows", 3)),), tmp_path / "shared.onnx", plan)
    refit = map_of(tmp_path, "shared")
    assert [(t.tensor, t.weight, t.permutation) for t in refit.targets] == [
        ("weight", "network.weight", ()), ("weight", "network.weight/transpose", (1, 0)),
    ]  # fmt: skip
    assert refit.absent == ("unused",)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_tensorrt_rtx_can_exchange_every_weight_by_that_name(
    unets: dict[Precision, tuple[Component, Path]], precision: Precision
) -> None:
    """Of the network that it reads, since a refittable plan is made and loaded only where there is a driver."""
    trt = pytest.importorskip("tensorrt_rtx")
    component, folder = unets[precision]
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(os.fspath(folder / component.file))
    names = [target.weight for target in map_of(folder).targets]
    assert len(names) > 100
    assert [name for name in names if not network.mark_weights_refittable(name)] == []
    assert not network.mark_weights_refittable("network.no_such.weight")
