"""A precision plan written into a graph: the nodes of its islands compute in fp32, with casts at their shores."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from engines.precision import Island, PrecisionPlan

TYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
SCOPES = "pkg.torch.onnx.name_scopes"
PREFIX = "island/"


def apply_plan(model: ir.Model, plan: PrecisionPlan) -> Mapping[str, int]:
    """Raise a plan's islands to fp32, in place; a node belongs to the first island that claims it.

    Args:
        model: traced in `plan.dtype`, simplified.

    Returns:
        By island, how many nodes compute in fp32.
    """
    half = TYPES[plan.dtype]
    inhabitants: dict[str, list[ir.Node]] = {island.name: [] for island in plan.islands}
    for node in model.graph:
        island = next((i for i in plan.islands if _claims(i, node, half)), None)
        if island is not None:
            inhabitants[island.name].append(node)
    for name, nodes in inhabitants.items():
        for node in nodes:
            node.name = f"{PREFIX}{name}/{node.name}"
        if half != ir.DataType.FLOAT:
            _Raising(model.graph, name, half).raise_all(nodes)
    RemoveUnusedNodesPass()(model)
    return {name: len(nodes) for name, nodes in inhabitants.items()}


def scope(node: ir.Node) -> str:
    """`<path of the module>/<traced operation>` that a node comes from, as the tracer noted it."""
    return "/".join(ast.literal_eval(node.metadata_props.get(SCOPES, "['', '']"))[-2:])


def _claims(island: Island, node: ir.Node, half: ir.DataType) -> bool:
    return (
        node.op_type != "Cast"
        and any(output.dtype in (half, ir.DataType.FLOAT) for output in node.outputs)
        and (not island.operators or node.op_type in island.operators)
        and any(fnmatchcase(scope(node), pattern) for pattern in island.scopes)
    )


class _Raising:
    """Raises the nodes of one island; each value at its shores is cast once, whoever uses it."""

    def __init__(self, graph: ir.Graph, island: str, half: ir.DataType) -> None:
        self._graph, self._island, self._half = graph, island, half
        self._raised: dict[ir.Value, ir.Value] = {}

    def raise_all(self, nodes: list[ir.Node]) -> None:
        inside = set(nodes)
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == self._half and value.producer() not in inside:
                    node.replace_input_with(index, self._in_fp32(value, inside))
        for node in nodes:
            for output in node.outputs:
                if output.dtype == self._half:
                    self._lower(output, inside)

    def _in_fp32(self, value: ir.Value, inside: set[ir.Node]) -> ir.Value:
        if value not in self._raised:
            producer = value.producer()
            if value.const_value is not None and producer is None:
                self._raised[value] = self._constant(value, inside)
            elif producer is not None and _widens(producer):
                # What was rounded only to come here need not be rounded.
                source = producer.inputs[0]
                assert source is not None
                self._raised[value] = source
            else:
                self._raised[value] = self._cast(value, ir.DataType.FLOAT, f"raised/{value.name}")
        return self._raised[value]

    def _constant(self, value: ir.Value, inside: set[ir.Node]) -> ir.Value:
        """The constant in fp32: under its own name when nobody else needs it in the type it has."""
        source = value.const_value
        assert source is not None
        assert value.name is not None
        alone = set(value.consumers()) <= inside
        name = value.name if alone else f"{PREFIX}{self._island}/{value.name}"
        if alone:
            del self._graph.initializers[value.name]

        def make() -> ir.TensorProtocol:
            return ir.tensor(source.numpy().astype(np.float32))

        tensor = ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape(source.shape.numpy()), name=name)
        type_ = ir.TensorType(ir.DataType.FLOAT)
        constant = ir.Value(name=name, shape=value.shape, type=type_, const_value=tensor)
        constant.meta.update(value.meta, **({} if alone or not value.meta else {"tensor": value.name}))
        self._graph.register_initializer(constant)
        return constant

    def _lower(self, output: ir.Value, inside: set[ir.Node]) -> None:
        output.type = ir.TensorType(ir.DataType.FLOAT)
        outside = [use for use in output.uses() if use.node not in inside]
        lowered = None
        for node, index in outside:
            if node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT:
                if not node.outputs[0].is_graph_output():
                    node.outputs[0].replace_all_uses_with(output)
                continue
            lowered = lowered or self._cast(output, self._half, f"lowered/{output.name}")
            node.replace_input_with(index, lowered)

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        name = f"{PREFIX}{self._island}/{name}"
        output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to))
        node = ir.node("Cast", [value], {"to": to}, outputs=[output], name=name)
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return output


def _widens(node: ir.Node) -> bool:
    """Whether a cast's source is fp32 already."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype == ir.DataType.FLOAT
