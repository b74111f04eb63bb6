"""Weights keep the names of the checkpoint's tensors through tracing, so that each can be exchanged later."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from engines.component import Precision
from engines.refit import RefitMap, Target

# What a wrapper calls the network, and its parameters by: `network.conv_in.weight`.
PREFIX = "network."
PRECISIONS: dict[ir.DataType, Precision] = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
}


@contextmanager
def held_apart(model: ir.Model) -> Iterator[None]:
    """Weights are inputs meanwhile: an optimizer must neither compute with them nor merge those that are equal now."""
    graph = model.graph
    inputs = len(graph.inputs)
    graph.inputs.extend(
        v for name, v in graph.initializers.items() if name.startswith(PREFIX) and v.dtype in PRECISIONS
    )
    yield
    del graph.inputs[inputs:]
    RemoveUnusedNodesPass()(model)


def _is_weight(value: ir.Value) -> bool:
    return bool(value.name and value.name.startswith(PREFIX)) and value.dtype in PRECISIONS


def fold(model: ir.Model) -> None:
    """Replace the transposing, reshaping and repeating of weights by weights that are so already."""
    graph = model.graph
    for name, weight in list(graph.initializers.items()):
        if not _is_weight(weight):
            continue
        weight.meta["permutation"] = ()
        for node in list(weight.consumers()):
            permutation = _permutation(node, weight)
            if permutation is None:
                continue
            alone = len(weight.uses()) == 1
            if alone:
                del graph.initializers[name]
            moved = _moved(weight, permutation, node.outputs[0], name if alone else f"{name}/{node.op_type.lower()}")
            graph.register_initializer(moved)
            node.outputs[0].replace_all_uses_with(moved)
            graph.remove(node, safe=True)


def _permutation(node: ir.Node, weight: ir.Value) -> tuple[int, ...] | None:
    """How a node orders the axes of a weight that it moves to a shape known now; None for any other node."""
    shape = node.outputs[0].shape
    if node.inputs[0] is not weight or node.outputs[0].is_graph_output() or shape is None or not shape.is_static():
        return None
    if node.op_type == "Transpose":
        return tuple(node.attributes["perm"].as_ints())
    return () if node.op_type in ("Unsqueeze", "Reshape") else None


def _moved(weight: ir.Value, permutation: tuple[int, ...], like: ir.Value, name: str) -> ir.Value:
    source, shape = weight.const_value, like.shape
    assert source is not None
    assert shape is not None
    assert weight.dtype is not None
    sizes = shape.numpy()

    def make() -> ir.TensorProtocol:
        array = source.numpy()
        return ir.tensor(np.ascontiguousarray(array.transpose(permutation or range(array.ndim)).reshape(sizes)))

    # Made when it is saved: a component's weights are never in memory twice.
    tensor = ir.LazyTensor(make, dtype=weight.dtype, shape=ir.Shape(sizes), name=name)
    moved = ir.Value(name=name, shape=ir.Shape(sizes), type=ir.TensorType(weight.dtype), const_value=tensor)
    moved.meta.update(tensor=weight.name, permutation=permutation)
    return moved


def refit_map(model: ir.Model, component: str, state: Mapping[str, torch.Tensor]) -> RefitMap:
    """Where the tensors of a wrapped network, by its state dict, are in its graph, traced and folded."""
    targets = tuple(_targets(model.graph.initializers.values(), state))
    found = {target.tensor for target in targets}
    floating = {name.removeprefix(PREFIX) for name, tensor in state.items() if tensor.is_floating_point()}
    return RefitMap(component, targets, tuple(sorted(floating - found)))


def _targets(weights: Collection[ir.Value], state: Mapping[str, torch.Tensor]) -> Iterator[Target]:
    for weight in weights:
        if "permutation" in weight.meta:
            assert weight.name is not None
            assert weight.shape is not None
            assert weight.dtype is not None
            tensor = weight.meta.get("tensor", weight.name)
            yield Target(
                tensor=tensor.removeprefix(PREFIX),
                weight=weight.name,
                stored=tuple(state[tensor].shape),
                permutation=weight.meta["permutation"],
                shape=weight.shape.numpy(),
                dtype=PRECISIONS[weight.dtype],
            )
