"""What OpenVINO computes faster in another form, rewritten before a network is compiled.

GroupNorm ends in a scale and a shift of each channel. OpenVINO's element-wise kernels go through a picture plane by
plane, which is slow where planes are small; a depthwise convolution of one pixel does the same sum with the channels
side by side, as the convolutions around it have them. Networks of fixed shapes do not need this.
"""

from __future__ import annotations

import importlib
from typing import Any

# Of numpy, that constants are read in.
FLOATS = ("float32", "float16")


def fuse_channel_affine(model: Any) -> int:
    """Rewrite x * scale + shift, of (rows, channels, height, width) and (channels, 1, 1), in place; gives how many.

    Args:
        model: an `openvino.Model`.
    """
    ops = importlib.import_module("openvino.opset14")
    found = [(node, parts) for node in model.get_ordered_ops() if (parts := _affine(node)) is not None]
    for add, (x, scale, shift) in found:
        channels = len(scale)
        weights = ops.constant(scale.reshape(channels, 1, 1, 1, 1))
        scaled = ops.group_convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1])
        shifted = ops.add(scaled, ops.constant(shift.reshape(1, channels, 1, 1)))
        shifted.set_friendly_name(add.get_friendly_name())
        add.output(0).replace(shifted.output(0))
    return len(found)


def _affine(add: Any) -> tuple[Any, Any, Any] | None:
    """x, scale and shift, (channels,), where this node ends what is to be rewritten."""
    if add.get_type_name() != "Add":
        return None
    product = add.input_value(0).get_node()
    if product.get_type_name() != "Multiply" or len(product.output(0).get_target_inputs()) != 1:
        return None
    x = product.input_value(0)
    shape = x.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4 or shape[1].is_dynamic:
        return None
    channels = shape[1].get_length()
    scale, shift = (_per_channel(node.input_value(1).get_node(), channels) for node in (product, add))
    return None if scale is None or shift is None else (x, scale, shift)


def _per_channel(node: Any, channels: int) -> Any:
    """Values of a constant that has one for each channel; None for anything else."""
    if node.get_type_name() != "Constant" or list(node.shape)[-3:] != [channels, 1, 1]:
        return None
    values = node.get_data()
    return values.reshape(-1) if values.size == channels and values.dtype.name in FLOATS else None
