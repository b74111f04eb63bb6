"""One component: loaded, traced, compared with torch."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from engines.catalog import components_of
from engines.component import Component, Precision, file_sha256
from export.checkpoint import Checkpoint
from export.parity import compare
from export.to_onnx import export_onnx
from export.wrappers import load_component

logger = logging.getLogger(__name__)

# Libraries whose advice to their own developers would bury what the export says.
TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir", "httpx", "transformers", "diffusers")


def trace_component(
    checkpoint: Checkpoint, folder: Path, name: str, resolutions: list[tuple[int, int]], precision: Precision
) -> Component:
    """One component of a checkpoint as `<name>.onnx` in `folder`, compared with torch.

    Args:
        resolutions: (height, width) in pixels, to compare at.

    Raises:
        CheckpointError: it cannot be loaded.
        ParityError: its output differs from torch's.
    """
    for library in TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
    started = time.monotonic()
    inputs, outputs = components_of(checkpoint.family, checkpoint.task, checkpoint.widths)[name]
    file = f"{name}.onnx"
    for old in (folder / file, folder / f"{file}.data"):
        old.unlink(missing_ok=True)
    network = load_component(checkpoint, name)
    if precision == "fp16":
        network.to(torch.float16)
    export_onnx(network, inputs, outputs, folder / file)
    component = Component(name, file, inputs, outputs, precision, file_sha256(folder / file))
    latents = [(h // checkpoint.downscale, w // checkpoint.downscale) for h, w in resolutions]
    parity = compare(network.float() if precision == "fp16" else network, component, folder, latents)
    logger.info(
        "%s: %.1f s, differs from torch by at most %.1e (limit %.0e)",
        name, time.monotonic() - started, parity["max_abs"], parity["limit"],
    )  # fmt: skip
    return Component(name, file, inputs, outputs, precision, component.sha256, parity)
