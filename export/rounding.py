"""Half precision without hardware for it: a graph that computes in fp32 and rounds every result to its type.

This is what an accelerator gives whose kernels accumulate in fp32 and store what the graph says, value by value.
ONNX Runtime's CPU provider cannot show it: it computes chains of fp16 operators in fp32 and has few in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from export.graph import PREFIX

Casts: TypeAlias = dict[tuple[ir.Value, ir.DataType | None], ir.Value]
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOATS = (ir.DataType.FLOAT, *HALVES)
# These move values, which are rounded already.
MOVING = {"Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"}


def island_of(node: ir.Node) -> str:
    """The name of a node's island; empty for the others."""
    name = node.name or ""
    return name.removeprefix(PREFIX).split("/")[0] if name.startswith(PREFIX) else ""


def half_of(model: ir.Model) -> ir.DataType:
    """The lower type that a graph computes in; fp16 when it has none, being an island as a whole."""
    types = (output.dtype for node in model.graph for output in node.outputs)
    return next((dtype for dtype in types if dtype in HALVES), ir.DataType.FLOAT16)


def emulate(model: ir.Model, drowned: str = "", exact: bool = False) -> None:
    """Turn a graph into one that computes in fp32 and rounds, in place.

    Args:
        drowned: an island that is rounded like the rest, as though the plan did not have it. Its normalisations are
            written out, for a kernel that keeps its type throughout: mean, squares and variance are rounded too.
        exact: without any rounding.
    """
    half = half_of(model)

    def is_low(node: ir.Node) -> bool:
        return (bool(drowned) and island_of(node) == drowned) or any(o.dtype in HALVES for o in node.outputs)

    graph = model.graph
    if not exact:
        for node in list(graph):
            if node.op_type == "InstanceNormalization" and is_low(node):
                _write_out(graph, node)
    low = {node for node in graph if is_low(node)}
    casts: Casts = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value.dtype in FLOATS:
                through = half if node in low and not exact else None
                if through is not None or value.dtype in HALVES:
                    node.replace_input_with(index, _constant(graph, value, through, casts))
        for output in node.outputs:
            if output.dtype in FLOATS:
                _compute_in_fp32(graph, node, output, half if node in low and not exact else None)


def _compute_in_fp32(graph: ir.Graph, node: ir.Node, output: ir.Value, through: ir.DataType | None) -> None:
    if node.op_type == "ConstantOfShape" and output.dtype in HALVES:
        _after(graph, output, ir.DataType.FLOAT)
        return
    output.type = ir.TensorType(ir.DataType.FLOAT)
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    if through is not None and node.op_type not in MOVING:
        _after(graph, output, through, ir.DataType.FLOAT)


def _after(graph: ir.Graph, value: ir.Value, *types: ir.DataType) -> None:
    """All who use `value` get it cast to each type in turn."""
    producer = value.producer()
    assert producer is not None
    uses, is_output = list(value.uses()), value.is_graph_output()
    # An output keeps its name and is what the node makes: those of components are fp32.
    assert not is_output or value.dtype == ir.DataType.FLOAT
    last, made = value, []
    for to in types:
        node = ir.node("Cast", [last], {"to": to})
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(to), value.shape
        made.append(node)
        last = node.outputs[0]
    graph.insert_after(producer, made)
    for user, index in uses:
        user.replace_input_with(index, last)


def _constant(graph: ir.Graph, value: ir.Value, through: ir.DataType | None, casts: Casts) -> ir.Value:
    """A weight in fp32, rounded to `through` on its way."""
    if (value, through) not in casts:
        types = [ir.DataType.FLOAT] if through is None or value.dtype == through else [through, ir.DataType.FLOAT]
        last, made = value, []
        for to in types:
            made.append(ir.node("Cast", [last], {"to": to}))
            last = made[-1].outputs[0]
            last.type, last.shape = ir.TensorType(to), value.shape
        graph.insert_before(graph[0], made)
        casts[value, through] = last
    return casts[value, through]


def _write_out(graph: ir.Graph, node: ir.Node) -> None:
    """InstanceNormalization as ONNX defines it, in single operators of its own type."""
    source, scale, bias = node.inputs
    output = node.outputs[0]
    assert source is not None
    assert source.shape is not None
    made: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        made.append(ir.node(operator, list(inputs), attributes, name=f"{node.name}/{operator}_{len(made)}"))
        made[-1].outputs[0].type, made[-1].outputs[0].shape = output.type, output.shape
        return made[-1].outputs[0]

    constants = partial(constant, graph, f"{node.name}")
    rank = len(source.shape)
    spatial = constants("spatial", np.arange(2, rank, dtype=np.int64))
    trailing = constants("trailing", np.arange(1, rank - 1, dtype=np.int64))
    epsilon = constants("epsilon", np.array(node.attributes["epsilon"].as_float(), np.float32))
    mean = add("ReduceMean", source, spatial)
    difference = add("Sub", source, mean)
    variance = add("ReduceMean", add("Mul", difference, difference), spatial)
    normal = add("Div", difference, add("Sqrt", add("Add", variance, epsilon)))
    scaled = add("Mul", normal, add("Unsqueeze", scale, trailing))
    result = add("Add", scaled, add("Unsqueeze", bias, trailing))
    graph.insert_before(node, made)
    output.replace_all_uses_with(result)
    graph.remove(node, safe=True)


def constant(graph: ir.Graph, prefix: str, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """A new initializer, called `<prefix>/<name>`."""
    tensor = ir.tensor(array, name=f"{prefix}/{name}")
    type_ = ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, shape=ir.Shape(array.shape), type=type_, const_value=tensor)
    graph.register_initializer(value)
    return value


def borders(model: ir.Model, island: str) -> Iterator[ir.Value]:
    """The floating values that enter an island, each once."""
    seen = set()
    for node in model.graph:
        for value in node.inputs if island_of(node) == island else ():
            if value is None or value in seen or value.is_initializer() or value.dtype not in FLOATS:
                continue
            producer = value.producer()
            if producer is None or island_of(producer) != island:
                seen.add(value)
                yield value
