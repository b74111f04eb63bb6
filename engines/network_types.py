"""The types of a network that a compiler has read: TensorRT would run an fp32 graph in fp32 without a word."""

from __future__ import annotations

from collections import Counter
from typing import Any

from engines.component import Component, Precision
from engines.errors import BuildError

# The compilers' names of our types.
EDGE_TYPES = {"float32": "FLOAT", "int32": "INT32"}
PRECISION_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
# Layers where nearly all arithmetic is; the others' types say little about a plan's speed.
MULTIPLYING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT")


def check_types(network: Any, component: Component, precision: Precision) -> dict[str, int]:
    """Compare a parsed network's types with the component's; returns its multiplying layers by type.

    Args:
        precision: that most of it should compute in.

    Raises:
        BuildError: an input or output has another name or type, or an fp16 graph multiplies nothing in fp16.
    """
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    _compare_edges({tensor.name: tensor.dtype.name for tensor in tensors}, component)
    layers = (network.get_layer(i) for i in range(network.num_layers))
    found = Counter(layer.get_output(0).dtype.name for layer in layers if layer.type.name in MULTIPLYING)
    wanted = PRECISION_TYPES[precision]
    if found and not found[wanted]:
        raise BuildError(
            f"{component.name} should multiply in {precision}, but its {sum(found.values())} multiplying layers are "
            f"{', '.join(sorted(found))}; export it again with --precision {precision}"
        )
    return dict(found)


def check_edges(engine: Any, component: Component) -> None:
    """Raises BuildError where a loaded engine's inputs and outputs are not the component's."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    _compare_edges({name: engine.get_tensor_dtype(name).name for name in names}, component)


def _compare_edges(theirs: dict[str, str], component: Component) -> None:
    ours = {spec.name: EDGE_TYPES[spec.dtype] for spec in (*component.inputs, *component.outputs)}
    if theirs != ours:
        raise BuildError(
            f"{component.name} has tensors {theirs}, pipeline.json says {ours}; run `python -m export` again"
        )
