"""Trace one component into a typed ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.version_converter import convert_version
from torch import nn
from torch.export import Dim
from torch.onnx import ONNXProgram

from engines.catalog import SIDE_MULTIPLE
from engines.component import Precision, TensorSpec, resolve, scaled_symbol
from engines.precision import PrecisionPlan
from export.graph import SCOPES, apply_plan
from export.weights import fold, held_apart, refit_map

logger = logging.getLogger(__name__)

# 20 is the last opset for which the tracer writes GroupNormalization as InstanceNormalization, and which ONNX Runtime
# fuses: the CPU provider takes a third longer for the same UNet at 22. Convolutions in bf16 exist from 22 on.
OPSET: dict[Precision, int] = {"fp32": 20, "fp16": 20, "bf16": 22}
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


def _silent(news: object) -> None:
    """Nobody is told."""


def export_onnx(
    network: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    path: Path,
    plan: PrecisionPlan,
    stage: Callable[[str], None] = _silent,
    saved: Callable[[int], None] = _silent,
) -> Mapping[str, int]:
    """Write `path`, `path.data` beside it when the weights are large, and `<name>.weights.json`: see `engines.refit`.

    Args:
        network: wrapped, in `plan.dtype`.
        stage: is told when `trace`, `precision` and `save` begin.
        saved: is told the bytes of each weight that goes into `path.data`.

    Returns:
        By island of the plan, how many nodes compute in fp32.
    """
    stage("trace")
    program = _trace(network, inputs, outputs)
    stage("precision")
    model = program.model
    # Before anything infers types: what is traced at the older opset has no bf16 there.
    convert_version(model, OPSET[plan.dtype])
    with held_apart(model):
        program.optimize()
    fold(model)
    raised = apply_plan(model, plan)
    for node in model.graph.all_nodes():
        # Paths of this machine, and most of a small file.
        for key in set(node.metadata_props) - {SCOPES}:
            del node.metadata_props[key]
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    stage("save")
    ir.save(
        model,
        path,
        external_data=f"{path.name}.data" if size > EXTERNAL_DATA_BYTES else None,
        callback=lambda tensor, place: saved(tensor.nbytes),
    )
    refit_map(model, path.stem, network.state_dict()).write(path.with_suffix(".weights.json"))
    return raised


def _trace(network: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> ONNXProgram:
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the tracer's advice to its own developers
        program = torch.onnx.export(
            network,
            kwargs=example_inputs(inputs, EXAMPLE),
            dynamo=True,
            optimize=False,
            opset_version=OPSET["fp32"],
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=_dynamic_shapes(inputs),
            verbose=False,
        )
    assert program is not None
    return program
