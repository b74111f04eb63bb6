"""A plan as a model that ONNX Runtime's TensorRT providers open: one EPContext node that names the plan's file.

onnxruntime.ai/docs/execution-providers/EP-Context-Design.html has the node; onnx.proto3 of github.com/onnx/onnx the
numbers of the fields. The few fields are written here so that a server needs no onnx package.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engines.component import Component, TensorSpec

IR_VERSION = 10
OPSET = 20
DOMAIN, OPERATOR = "com.microsoft", "EPContext"
ELEMENT_TYPES = {"float32": 1, "int32": 6, "int64": 7, "float16": 10}
INT_ATTRIBUTE, STRING_ATTRIBUTE = 2, 3


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _field(number: int, value: int | str | bytes) -> bytes:
    """One protobuf field: a varint for a number, else bytes with their length before them."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _attribute(name: str, value: int | str) -> bytes:
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, INT_ATTRIBUTE)
    return _field(1, name) + _field(4, value) + _field(20, STRING_ATTRIBUTE)


def _value_info(spec: TensorSpec) -> bytes:
    """A symbolic size is written by its symbol, which says no more than that it is open."""
    dims = [_field(1, dim) if isinstance(dim, int) else _field(2, dim) for dim in spec.shape]
    shape = b"".join(_field(1, dim) for dim in dims)
    tensor = _field(1, ELEMENT_TYPES[spec.dtype]) + _field(2, shape)
    return _field(1, spec.name) + _field(2, _field(1, tensor))


def _joined(number: int, messages: Iterable[bytes | str]) -> bytes:
    return b"".join(_field(number, message) for message in messages)


def context_model(component: Component, plan: str, provider: str) -> bytes:
    """An ONNX model whose only node hands all of a component's tensors to a plan.

    Args:
        plan: the file's name, in the folder where the model will be written.
        provider: the execution provider that opens it, as ONNX Runtime calls it.
    """
    attributes = [
        _attribute("main_context", 1),
        _attribute("embed_mode", 0),
        _attribute("ep_cache_context", plan),
        _attribute("partition_name", component.name),
        _attribute("source", provider),
    ]
    node = (
        _joined(1, (spec.name for spec in component.inputs))
        + _joined(2, (spec.name for spec in component.outputs))
        + _field(3, component.name)
        + _field(4, OPERATOR)
        + _joined(5, attributes)
        + _field(7, DOMAIN)
    )
    graph = (
        _field(1, node)
        + _field(2, component.name)
        + _joined(11, map(_value_info, component.inputs))
        + _joined(12, map(_value_info, component.outputs))
    )
    opsets = [_field(1, "") + _field(2, OPSET), _field(1, DOMAIN) + _field(2, 1)]
    return _field(1, IR_VERSION) + _field(7, graph) + _joined(8, opsets)


def write_context_model(component: Component, plan: Path, provider: str, folder: Path) -> Path:
    """Write the model into `folder`, with a link to the plan beside it: providers take no path that leads elsewhere."""
    link = folder / f"{component.name}.plan"
    link.symlink_to(plan.resolve())
    model = folder / f"{component.name}.onnx"
    model.write_bytes(context_model(component, link.name, provider))
    return model
