"""A plan wrapped for ONNX Runtime: what is written by hand is what the onnx package reads."""

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from engines.component import Component, TensorSpec
from engines.ep_context import context_model, write_context_model

UNET = Component(
    "unet",
    "unet.onnx",
    (
        TensorSpec("sample", "float32", ("rows", 4, "8*height", 300)),
        TensorSpec("input_ids", "int32", ("rows",)),
    ),
    (TensorSpec("out_sample", "float32", ("rows", 4, "8*height", 300)),),
)


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_model_is_one_node_that_names_the_plan() -> None:
    model = onnx.load_model_from_string(context_model(UNET, "unet.plan", "TensorrtExecutionProvider"))
    (node,) = model.graph.node
    assert (node.op_type, node.domain) == ("EPContext", "com.microsoft")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {
        "main_context": 1,
        "embed_mode": 0,
        "ep_cache_context": b"unet.plan",
        "partition_name": b"unet",
        "source": b"TensorrtExecutionProvider",
    }
    assert list(node.input) == ["sample", "input_ids"]
    assert list(node.output) == ["out_sample"]
    assert {o.domain: o.version for o in model.opset_import} == {"": 20, "com.microsoft": 1}


def test_the_model_has_the_components_tensors() -> None:
    graph = onnx.load_model_from_string(context_model(UNET, "unet.plan", "x")).graph
    for ours, theirs in ((UNET.inputs, graph.input), (UNET.outputs, graph.output)):
        types = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}
        assert [(t.name, t.type.tensor_type.elem_type, shape(t)) for t in theirs] == [
            (t.name, types[t.dtype], list(t.shape)) for t in ours
        ]


def test_the_plan_lies_beside_the_model(tmp_path: Path) -> None:
    plan = tmp_path / "plans" / "unet-512x512.plan"
    plan.parent.mkdir()
    plan.write_bytes(b"plan")
    folder = tmp_path / "wrapped"
    folder.mkdir()
    model = onnx.load_model(write_context_model(UNET, plan, "TensorrtExecutionProvider", folder))
    (name,) = [a.s.decode() for a in model.graph.node[0].attribute if a.name == "ep_cache_context"]
    assert (folder / name).read_bytes() == b"plan"


def test_onnx_runtime_knows_the_node() -> None:
    """It takes the model for well formed, and misses only a provider that runs it."""
    with pytest.raises(Exception, match="EPContext") as caught:
        ort.InferenceSession(context_model(UNET, "unet.plan", "x"), providers=["CPUExecutionProvider"])
    assert "NOT_IMPLEMENTED" in str(caught.value)
