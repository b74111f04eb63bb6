"""One component: loaded, traced, compared with torch."""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from pathlib import Path

from tqdm import tqdm

from engines.catalog import Side
from engines.component import Component, Precision, file_sha256
from engines.precision import plan_for
from export.checkpoint import Checkpoint
from export.parity import compare, references
from export.to_onnx import export_onnx
from export.wrappers import load_component

logger = logging.getLogger(__name__)

# Libraries whose advice to their own developers would bury what the export says.
TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir", "httpx", "transformers", "diffusers")
STAGES = ("load", "trace", "precision", "save", "reference", "compare")


class Progress:
    """A bar of the stages of one component, and the bytes that it has written."""

    def __init__(self, name: str) -> None:
        self._bar = tqdm(total=len(STAGES), desc=name, disable=None, bar_format="{desc}: {bar:20} {elapsed}{postfix}")
        self.written = 0

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._bar.n = STAGES.index(name)
        self._bar.set_postfix_str(f"{name}, {self.written / 1e6:,.0f} MB written")

    def saved(self, count: int) -> None:
        """That many bytes more are written."""
        self.written += count
        self.stage("save")

    def close(self) -> None:
        self._bar.close()


def trace_component(
    checkpoint: Checkpoint,
    folder: Path,
    name: str,
    tensors: tuple[Side, Side],
    resolutions: list[tuple[int, int]],
    precision: Precision,
) -> Component:
    """One component of a checkpoint as `<name>.onnx` in `folder`, compared with torch.

    Args:
        tensors: its inputs and outputs.
        resolutions: (height, width) in pixels, to compare at.

    Raises:
        CheckpointError: it cannot be loaded.
        ParityError: its output differs from torch's.
    """
    for library in TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
    started = time.monotonic()
    inputs, outputs = tensors
    plan = plan_for(checkpoint.family, name, precision)
    path = folder / f"{name}.onnx"
    progress = Progress(name)
    try:
        progress.stage("load")
        network = load_component(checkpoint, name, plan.dtype)
        export_onnx(network, inputs, outputs, path, plan, progress.stage, progress.saved)
        progress.written = written = sum(file.stat().st_size for file in folder.glob(f"{path.name}*"))
        progress.stage("reference")
        component = Component(name, path.name, inputs, outputs, plan.dtype, file_sha256(path))
        latents = [(h // checkpoint.downscale, w // checkpoint.downscale) for h, w in resolutions]
        cases = references(network, component, latents)
        # ONNX Runtime holds the weights a second time.
        del network
        gc.collect()
        progress.stage("compare")
        parity = compare(cases, component, folder)
    finally:
        progress.close()
    logger.info(
        "%s: %.1f s, %.2f GB, %s, differs from torch by at most %.1e (limit %.0e)",
        name, time.monotonic() - started, written / 1e9, plan.dtype, parity["max_scaled"], parity["limit"],
    )  # fmt: skip
    return dataclasses.replace(component, parity=parity)
