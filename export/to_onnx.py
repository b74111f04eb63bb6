"""Trace one component into a typed ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from engines.catalog import SIDE_MULTIPLE
from engines.component import TensorSpec, resolve, scaled_symbol

logger = logging.getLogger(__name__)

OPSET = 20
# Above this the weights go into `<file>.data`: protobuf ends at 2 GiB, and loaders can map a file of raw weights.
EXTERNAL_DATA_BYTES = 256 << 20
# Sizes of a traced example: unlike each other and unlike 1, so that nothing is taken for constant.
EXAMPLE = {"rows": 3, "tokens": 77, "height": 16, "width": 24}


def example_inputs(specs: tuple[TensorSpec, ...], sizes: dict[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs: ids below 400, 0 or 1 layers skipped, timesteps in [0, 999), normal values for the rest."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for spec in specs:
        shape = [resolve(dim, sizes) for dim in spec.shape]
        if spec.dtype == "int32":
            limit = 2 if spec.name == "clip_skip" else 400
            made[spec.name] = torch.randint(limit, shape, generator=generator, dtype=torch.int32)
        elif spec.name == "timestep":
            made[spec.name] = torch.rand(shape, generator=generator) * 999
        else:
            made[spec.name] = torch.randn(shape, generator=generator)
    return made


def _dynamic_shapes(specs: tuple[TensorSpec, ...]) -> dict[str, dict[int, Any]]:
    blocks = {side: Dim(f"{side}_blocks") for side in ("height", "width")}
    dims: dict[str, Any] = {"rows": Dim("rows"), "tokens": Dim("tokens")}
    dims |= {side: SIDE_MULTIPLE * count for side, count in blocks.items()}
    shapes: dict[str, dict[int, Any]] = {}
    for spec in specs:
        shapes[spec.name] = {}
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                factor, symbol = scaled_symbol(dim)
                shapes[spec.name][axis] = dims[symbol] if factor == 1 else int(SIDE_MULTIPLE * factor) * blocks[symbol]
    return shapes


def export_onnx(
    network: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], path: Path
) -> None:
    """Write `path`, and `path.data` beside it when the weights are large."""
    example = example_inputs(inputs, EXAMPLE)
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the tracer's advice to its own developers
        program = torch.onnx.export(
            network,
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=_dynamic_shapes(inputs),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        # Paths of this machine, and half of a small file.
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)
