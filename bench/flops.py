"""What a component multiplies: operations counted from its graph, and how fast this machine multiplies at best."""

from __future__ import annotations

import ast
import itertools
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
from engines.providers import OPENVINO, Settings
from engines.runner import open_runner
from engines.verify import REFERENCE

MULTIPLYING = ("MatMul", "Gemm", "Conv")
# Nodes that change nothing about a shape, behind which the graph may not tell it.
TRANSPARENT = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")
# Of products, timed together: the quickest counts.
CALLS = 2
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@dataclass(frozen=True, slots=True)
class Chain:
    """Products of square matrices in one call, an even number: how many, and their side, a power of two."""

    length: int
    side: int

    @property
    def operations(self) -> int:
        return 2 * self.length * self.side**3


# Beyond the caches, and short; on a GPU long enough for what a call takes besides.
CPU_CHAIN, GPU_CHAIN = Chain(2, 2048), Chain(64, 4096)


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
    """Large square matrix products by a provider, one after the other, as the measure of what the machine can do.

    Only a column goes in and comes out, so that copies to a GPU and back do not count.

    Args:
        precision: of the matrices.
        folder: for the graph, while this is made.

    Attributes:
        best: most operations a second so far.
    """

    def __init__(self, provider: str, precision: Precision, settings: Settings, folder: Path) -> None:
        self._chain = CPU_CHAIN if provider.startswith((REFERENCE, OPENVINO)) else GPU_CHAIN
        x, y = (TensorSpec(name, "float32", (self._chain.side, 1)) for name in "xy")
        component = Component("product", f"product-{precision}.onnx", (x,), (y,))
        onnx.save_model(_graph(precision, self._chain), folder / component.file)
        self._runner = open_runner(component, folder, provider, settings)
        self._x = np.random.default_rng(0).uniform(-1, 1, (self._chain.side, 1)).astype(np.float32)
        self.best = 0.0
        # The first ones may compile, and wake threads.
        self.flops()

    def flops(self) -> float:
        """Operations a second of the quickest of some calls, now."""
        seconds = []
        for _ in range(CALLS):
            started = time.perf_counter()
            self._runner.infer({"x": self._x})
            seconds.append(time.perf_counter() - started)
        now = self._chain.operations / min(seconds)
        self.best = max(self.best, now)
        return now


def rotation(side: int) -> npt.NDArray[np.float32]:
    """Sylvester's orthogonal Hadamard matrix, of a side that is a power of two.

    It is its own inverse, so that a chain neither grows nor fades; and has no zeros, with which a GPU would take less
    power, and be quicker, than with any network.
    """
    found = np.ones((1, 1), np.float32)
    while len(found) < side:
        found = np.block([[found, found], [found, -found]])
    return found / np.float32(math.sqrt(side))


def _graph(precision: Precision, chain: Chain) -> onnx.ModelProto:
    """y is the greatest of each row of a chain that begins with x times a row of -1 and 1: x without its sign."""
    signs = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), (1, chain.side))
    constants, nodes = _quantised(chain) if precision == "int8" else _floating(chain, TYPES[precision])
    constants += [numpy_helper.from_array(signs, "signs"), numpy_helper.from_array(np.array([1]), "columns")]
    nodes.insert(0, helper.make_node("Mul", ["x", "signs"], ["begun"]))
    nodes.append(helper.make_node("ReduceMax", ["ended", "columns"], ["y"], keepdims=1))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [chain.side, 1]) for name in "xy")
    graph = helper.make_graph(nodes, "product", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _floating(chain: Chain, inside: int) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    """From `begun` to `ended`, in that type between."""
    products = [helper.make_node("MatMul", [f"x_{i}", "w_inside"], [f"x_{i + 1}"]) for i in range(chain.length)]
    return [numpy_helper.from_array(rotation(chain.side), "w")], [
        helper.make_node("Cast", ["begun"], ["x_0"], to=inside),
        helper.make_node("Cast", ["w"], ["w_inside"], to=inside),
        *products,
        helper.make_node("Cast", [f"x_{chain.length}"], ["ended"], to=TensorProto.FLOAT),
    ]


def _quantised(chain: Chain) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    """As an int8 export has its products: both factors rounded, and taken to be what they stand for."""
    weights = rotation(chain.side)
    largest = float(weights.max())
    constants = [
        numpy_helper.from_array((127 / largest * weights).round().astype(np.int8), "w_rounded"),
        helper.make_tensor("w_scale", TensorProto.FLOAT, [], [largest / 127]),
        helper.make_tensor("x_scale", TensorProto.FLOAT, [], [1 / 32]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    ]
    nodes = [helper.make_node("DequantizeLinear", ["w_rounded", "w_scale", "zero"], ["w_inside"])]
    names = ["begun", *(f"x_{i}" for i in range(1, chain.length)), "ended"]
    for before, after in itertools.pairwise(names):
        rounded, inside = f"{before}_rounded", f"{before}_inside"
        nodes += [
            helper.make_node("QuantizeLinear", [before, "x_scale", "zero"], [rounded]),
            helper.make_node("DequantizeLinear", [rounded, "x_scale", "zero"], [inside]),
            helper.make_node("MatMul", [inside, "w_inside"], [after]),
        ]
    return constants, nodes
