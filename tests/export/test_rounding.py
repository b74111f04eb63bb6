"""Emulated half precision: rounding where torch rounds, overflow where it overflows."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from torch.nn.functional import group_norm

from engines.component import Component, Precision, TensorSpec
from engines.runner import open_runner
from export.rounding import borders, emulate, island_of
from export.to_onnx import example_inputs

Unets = dict[Precision, tuple[Component, Path]]
Array = npt.NDArray[Any]
SIZES = {"rows": 2, "tokens": 77, "height": 8, "width": 8}
X = (TensorSpec("x", "float32", ("rows", 2, "n")),)
Y = (TensorSpec("y", "float32", ("rows", 2, "n")),)


def run(component: Component, folder: Path, drowned: str = "", *, exact: bool = False) -> Array:
    """The one output of a component, emulated, for its example inputs."""
    model = ir.load(folder / component.file)
    emulate(model, drowned, exact)
    work = folder / f"emulated{drowned}{exact}"
    work.mkdir(exist_ok=True)
    ir.save(model, work / component.file)
    feeds = {name: tensor.numpy() for name, tensor in example_inputs(component.inputs, SIZES).items()}
    (output,) = open_runner(component, work, "cpu").infer(feeds).values()
    return np.asarray(output)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_differs_from_fp32_as_the_type_does(unets: Unets, precision: Precision) -> None:
    component, folder = unets["fp32"]
    feeds = {name: tensor.numpy() for name, tensor in example_inputs(component.inputs, SIZES).items()}
    (full,) = open_runner(component, folder, "cpu").infer(feeds).values()
    exact, rounded = (run(*unets[precision], exact=exact) for exact in (True, False))
    step = {"fp16": 2**-11, "bf16": 2**-8}[precision]
    # Weights are rounded in the checkpoint for fp16, here for bf16; then values are.
    assert np.abs(exact - full).max() < 10 * step * full.std()
    assert 0.5 * step < np.abs(rounded - exact).max() / full.std() < 30 * step


def small(folder: Path, dtype: ir.DataType, operator: str, *others: Array, **attributes: float) -> Component:
    """Casts around one operator, whose other inputs are constants."""
    start = ir.Value(name="x", shape=ir.Shape(["rows", 2, "n"]), type=ir.TensorType(ir.DataType.FLOAT))
    end = ir.Value(name="y", shape=ir.Shape(["rows", 2, "n"]), type=ir.TensorType(ir.DataType.FLOAT))
    constants = []
    for index, array in enumerate(others):
        tensor = ir.tensor(array, dtype=dtype, name=f"c{index}")
        constants.append(
            ir.Value(name=f"c{index}", shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
        )
    enter = ir.node("Cast", [start], {"to": dtype}, name="enter")
    node = ir.node(operator, [enter.outputs[0], *constants], attributes, name="island/i/node")
    leave = ir.node("Cast", [node.outputs[0]], {"to": ir.DataType.FLOAT}, outputs=[end], name="leave")
    for inner in (enter, node):
        inner.outputs[0].type, inner.outputs[0].shape = ir.TensorType(dtype), start.shape
    graph = ir.Graph(
        [start], [end], nodes=[enter, node, leave], initializers=constants, opset_imports={"": 20}, name="small"
    )
    folder.mkdir(exist_ok=True)
    ir.save(ir.Model(graph, ir_version=10), folder / "small.onnx")
    return Component("small", "small.onnx", X, Y, "fp16")


def emulated(component: Component, folder: Path, x: Array) -> Array:
    model = ir.load(folder / component.file)
    emulate(model)
    ir.save(model, folder / component.file)
    return np.asarray(open_runner(component, folder, "cpu").infer({"x": x})["y"])


@pytest.mark.parametrize("values", [[0.1, 3.3, 254.9, 60000], [256.2, 1e-6, -7e4, 300]])
def test_a_product_is_torchs_in_fp16(tmp_path: Path, values: list[float]) -> None:
    x = np.array(values, np.float32).reshape(1, 2, 2)
    component = small(tmp_path, ir.DataType.FLOAT16, "Mul", np.array([300.7], np.float32).astype(np.float16))
    expected = (torch.from_numpy(x).half() * torch.tensor([300.7]).half()).float().numpy()
    np.testing.assert_array_equal(emulated(component, tmp_path, x), expected)
    assert np.isinf(expected).any()


def test_a_norm_whose_squares_overflow_loses_its_values(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 64)).astype(np.float32)
    ones, zeros = np.ones(2, np.float16), np.zeros(2, np.float16)
    exact = group_norm(torch.from_numpy(x), 2, eps=1e-5).numpy()
    for scale, close in ((10.0, True), (1000.0, False)):
        folder = tmp_path / str(scale)
        norm = small(folder, ir.DataType.FLOAT16, "InstanceNormalization", ones, zeros, epsilon=1e-5)
        found = emulated(norm, folder, x * np.float32(scale))
        assert bool(np.abs(found - exact).max() < 0.02) is close
    # The variance is infinite, so that nothing is left after the division.
    assert not found.any()


def test_values_that_enter_an_island(unets: Unets) -> None:
    component, folder = unets["fp16"]
    model = ir.load(folder / component.file)
    entering = list(borders(model, "statistics"))
    norms = [node for node in model.graph if node.op_type == "InstanceNormalization"]
    assert len(entering) == len(norms) > 0
    assert {value.producer().op_type for value in entering} == {"Reshape"}  # type: ignore[union-attr]
    assert {value.name for value in borders(model, "time_embedding")} == {"timestep"}
    assert not list(borders(model, "no such island"))


def test_islands_by_names() -> None:
    names = {"island/attention/node_3": "attention", "island/whole/a/b": "whole", "node_island/x": "", "node": ""}
    assert {name: island_of(ir.node("Sin", [None], name=name)) for name in names} == names
