"""What a component multiplies: operations counted from its graph, and how fast this machine multiplies at best."""

from __future__ import annotations

import ast
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.component import Component, Precision, TensorSpec
from engines.errors import ArtefactError
from engines.providers import Settings
from engines.runner import open_runner

MULTIPLYING = ("MatMul", "Gemm", "Conv")
# Nodes that change nothing about a shape, behind which the graph may not tell it.
TRANSPARENT = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")
# Of a square product: beyond the caches, and short.
SIDE = 2048
PRODUCTS = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the symbols in a graph's shapes."""

    rows: int
    tokens: int
    area: float

    def of(self, dim: str) -> float:
        """The size that an exporter's expression stands for, such as `64*s75*s95`.

        Its names for height and width are not known. They come in pairs wherever something is multiplied, so that the
        square root of their product does for either.

        Raises:
            ArtefactError: an expression of another kind.
        """

        def value(node: ast.expr) -> float:
            match node:
                case ast.Constant(value=int(number)):
                    return number
                case ast.Name(id="rows"):
                    return self.rows
                case ast.Name(id="tokens"):
                    return self.tokens
                case ast.Name():
                    return math.sqrt(self.area)
                case ast.BinOp(left=left, op=ast.Mult(), right=right):
                    return value(left) * value(right)
                case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
                    return value(left) / value(right)
            raise ArtefactError(f"the graph has a size {dim!r}, which is no product; export it again")

        return value(ast.parse(dim, mode="eval").body)


def operations(path: Path, sizes: Sizes) -> Counter[str]:
    """Floating-point operations of one call, two for each product, by operator.

    Args:
        sizes: rows and tokens, and in `area` the latent's, in blocks of 8x8 as the exporter counts.

    Raises:
        ArtefactError: a shape is not told by the graph.
    """
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {tensor.name: [float(size) for size in tensor.dims] for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [sizes.of(dim.dim_param) if dim.dim_param else dim.dim_value for dim in dims]
    counted: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in TRANSPARENT and node.input[0] in shapes:
            shapes.setdefault(node.output[0], shapes[node.input[0]])
        if node.op_type in MULTIPLYING:
            counted[node.op_type] += round(2 * _products(node, shapes, path))
    return counted


def _products(node: onnx.NodeProto, shapes: Mapping[str, list[float]], path: Path) -> float:
    """Of a convolution those of its kernel at every place; else those of a row by a column."""
    if missing := [name for name in (*node.input[:2], node.output[0]) if name not in shapes]:
        raise ArtefactError(f"{path} does not tell the shapes of {missing}; export it again")
    factor, output = shapes[node.input[0]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(shapes[node.input[1]][1:])
    transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * factor[-2 if transposed else -1]


class Product:
    """A large square matrix product by a provider, as the measure of what the machine can do.

    Args:
        precision: of the matrices.
        folder: for the graph, while this is made.

    Attributes:
        best: most operations a second so far.
    """

    def __init__(self, provider: str, precision: Precision, settings: Settings, folder: Path) -> None:
        square = TensorSpec("x", "float32", (SIDE, SIDE)), TensorSpec("y", "float32", (SIDE, SIDE))
        component = Component("product", f"product-{precision}.onnx", square[:1], square[1:])
        onnx.save_model(_product(precision), folder / component.file)
        self._runner = open_runner(component, folder, provider, settings)
        self._x = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
        self.best = 0.0
        # The first ones may compile, and wake threads.
        self.flops()

    def flops(self) -> float:
        """Operations a second of the quickest of some products, now."""
        seconds = []
        for _ in range(PRODUCTS):
            started = time.perf_counter()
            self._runner.infer({"x": self._x})
            seconds.append(time.perf_counter() - started)
        now = 2 * SIDE**3 / min(seconds)
        self.best = max(self.best, now)
        return now


def _product(precision: Precision) -> onnx.ModelProto:
    """x times a constant matrix, in that precision inside."""
    weights = np.eye(SIDE, dtype=np.float32)
    if precision == "int8":
        constants, nodes = _quantised(weights)
    else:
        inside = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
        constants = [numpy_helper.from_array(weights, "w")]
        nodes = [
            helper.make_node("Cast", ["x"], ["x_inside"], to=inside),
            helper.make_node("Cast", ["w"], ["w_inside"], to=inside),
            helper.make_node("MatMul", ["x_inside", "w_inside"], ["y_inside"]),
            helper.make_node("Cast", ["y_inside"], ["y"], to=TensorProto.FLOAT),
        ]
    edge = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in "xy"]
    graph = helper.make_graph(nodes, "product", edge[:1], edge[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _quantised(weights: npt.NDArray[np.float32]) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    """As an int8 export has its products: both factors rounded, and taken to be what they stand for."""
    constants = [
        numpy_helper.from_array((127 * weights).astype(np.int8), "w_rounded"),
        helper.make_tensor("w_scale", TensorProto.FLOAT, [], [1 / 127]),
        helper.make_tensor("x_scale", TensorProto.FLOAT, [], [1 / 32]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_rounded"]),
        helper.make_node("DequantizeLinear", ["x_rounded", "x_scale", "zero"], ["x_inside"]),
        helper.make_node("DequantizeLinear", ["w_rounded", "w_scale", "zero"], ["w_inside"]),
        helper.make_node("MatMul", ["x_inside", "w_inside"], ["y"]),
    ]
    return constants, nodes
