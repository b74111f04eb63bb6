"""An export of three toy networks whose plans compile in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.component import Component, PipelineSpec, TensorSpec, file_sha256

WIDTH = 8
TENSORS = {
    "text_encoder": (
        (TensorSpec("input_ids", "int32", ("rows", 77)),),
        (TensorSpec("last_hidden_state", "float32", ("rows", 77, WIDTH)),),
    ),
    "unet": (
        (
            TensorSpec("sample", "float32", ("rows", 4, "height", "width")),
            TensorSpec("encoder_hidden_states", "float32", ("rows", "tokens", WIDTH)),
        ),
        (TensorSpec("out_sample", "float32", ("rows", 4, "height", "width")),),
    ),
    "vae_decoder": (
        (TensorSpec("latent", "float32", ("rows", 4, "height", "width")),),
        (TensorSpec("image", "float32", ("rows", 3, "8*height", "8*width")),),
    ),
}
# Operator, inputs, output, attributes; `cast_down` goes to the type under test, `cast_up` to fp32.
NODES: dict[str, list[tuple[str, list[str], str, dict[str, Any]]]] = {
    "text_encoder": [
        ("Gather", ["words", "input_ids"], "gathered", {}),
        ("MatMul", ["gathered", "weight"], "multiplied", {}),
        ("cast_up", ["multiplied"], "last_hidden_state", {}),
    ],
    "unet": [
        ("cast_down", ["sample"], "latent", {}),
        ("Conv", ["latent", "weight", "bias"], "convolved", {"pads": [1] * 4}),
        ("cast_down", ["encoder_hidden_states"], "text", {}),
        ("ReduceMean", ["text", "axes"], "mean", {"keepdims": 1}),
        ("Unsqueeze", ["mean", "last"], "shift", {}),
        ("Add", ["convolved", "shift"], "shifted", {}),
        ("cast_up", ["shifted"], "out_sample", {}),
    ],
    "vae_decoder": [
        ("cast_down", ["latent"], "small", {}),
        ("Resize", ["small", "", "scales"], "large", {"mode": "nearest"}),
        ("Conv", ["large", "weight", "bias"], "convolved", {"pads": [1] * 4}),
        ("cast_up", ["convolved"], "image", {}),
    ],
}
WEIGHTS: dict[str, dict[str, tuple[int, ...]]] = {
    "text_encoder": {"words": (100, WIDTH), "weight": (WIDTH, WIDTH)},
    "unet": {"weight": (4, 4, 3, 3), "bias": (4,)},
    "vae_decoder": {"weight": (3, 4, 3, 3), "bias": (3,)},
}
CONSTANTS: dict[str, dict[str, npt.NDArray[Any]]] = {
    "text_encoder": {},
    "unet": {"axes": np.array([1, 2], np.int64), "last": np.array([3], np.int64)},
    "vae_decoder": {"scales": np.array([1, 1, 8, 8], np.float32)},
}
ONNX_TYPES = {"fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}


def network(name: str, precision: str = "fp16", seed: int = 0) -> onnx.ModelProto:
    """The graph of a component that multiplies in `precision`."""
    inputs, outputs = TENSORS[name]
    random = np.random.default_rng(seed)
    weights = {key: random.standard_normal(shape).astype(np.float32) for key, shape in WEIGHTS[name].items()}
    if precision == "fp16":
        weights = {key: values.astype(np.float16) for key, values in weights.items()}
    casts = {"cast_down": ONNX_TYPES[precision], "cast_up": TensorProto.FLOAT}
    nodes = [
        helper.make_node("Cast", names, [output], to=casts[operator])
        if operator in casts
        else helper.make_node(operator, names, [output], **attributes)
        for operator, names, output, attributes in NODES[name]
    ]
    values = [numpy_helper.from_array(array, key) for key, array in (weights | CONSTANTS[name]).items()]
    graph = helper.make_graph(nodes, name, [_edge(spec) for spec in inputs], [_edge(spec) for spec in outputs], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _edge(spec: TensorSpec) -> onnx.ValueInfoProto:
    element = TensorProto.INT32 if spec.dtype == "int32" else TensorProto.FLOAT
    return helper.make_tensor_value_info(spec.name, element, spec.shape)


def write_toy_export(folder: Path, seed: int = 0) -> PipelineSpec:
    """Networks in fp16 for 64x64 and 128x128 pixels, and `pipeline.json`."""
    components = {}
    for name, (inputs, outputs) in TENSORS.items():
        path = folder / f"{name}.onnx"
        onnx.save_model(network(name, seed=seed), path)
        components[name] = Component(name, path.name, inputs, outputs, "fp16", file_sha256(path))
    spec = PipelineSpec(
        checkpoint="tests/toy",
        family="sd1",
        task="text_to_image",
        fingerprint=f"{seed:064}",
        key=f"{seed + 1:064}",
        prediction_type="epsilon",
        scaling_factor=0.18215,
        latent_channels=4,
        downscale=8,
        schedule={},
        resolutions=((64, 64), (128, 128)),
        tokenizer="tokenizer",
        tokenizer_sha256="",
        context_length=77,
        text_layers=1,
        components=components,
    )
    spec.write(folder)
    return spec
