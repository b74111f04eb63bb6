"""Checkpoint to a folder that a server can load: ONNX components, tokenizer and `pipeline.json`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
from pathlib import Path

from engines.catalog import SIDE_MULTIPLE, components_of
from engines.component import PIPELINE_FILE, PipelineSpec, Precision, folder_sha256
from engines.errors import ArtefactError
from export.checkpoint import Checkpoint
from export.errors import ExportError

logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
MAKERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")
SOURCES = (
    "export/checkpoint.py",
    "export/export.py",
    "export/preview.py",
    "export/to_onnx.py",
    "export/trace.py",
    "export/wrappers.py",
    "engines/catalog.py",
    "engines/component.py",
)


def export_key(checkpoint: Checkpoint, resolutions: list[tuple[int, int]], precision: Precision) -> str:
    """SHA-256 over all that the exported files depend on: weights, options, tracing sources, libraries."""
    root = Path(__file__).resolve().parent.parent
    sources = [root / source for source in SOURCES]
    parts = {
        "fingerprint": checkpoint.fingerprint,
        "resolutions": resolutions,
        "precision": precision,
        "makers": {name: importlib.metadata.version(name) for name in MAKERS},
        "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_exported(folder: Path, key: str) -> bool:
    """Whether `folder` holds the complete, unchanged export of that key."""
    try:
        spec = PipelineSpec.read(folder)
        spec.verify(folder)
    except (ArtefactError, OSError):
        return False
    return spec.key == key


def check_resolutions(checkpoint: Checkpoint, resolutions: list[tuple[int, int]]) -> None:
    """Raises ExportError where a side is no positive multiple of what the UNet can halve."""
    multiple = SIDE_MULTIPLE * checkpoint.downscale
    if not resolutions:
        raise ExportError("no resolution was given; give at least one, such as 512")
    for height, width in resolutions:
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ExportError(
                f"resolution {height}x{width} does not fit: both sides must be multiples of {multiple} pixels"
            )


def export_checkpoint(
    checkpoint: Checkpoint, folder: Path, resolutions: list[tuple[int, int]], precision: Precision = "fp32"
) -> PipelineSpec:
    """Export every component, compare each with torch, write `pipeline.json` last; nothing is done twice for one key.

    Args:
        resolutions: (height, width) in pixels.
        precision: of the weights and most arithmetic; inputs and outputs stay fp32.

    Raises:
        ExportError: the checkpoint, the resolutions, or a component that does not match torch.
    """
    check_resolutions(checkpoint, resolutions)
    key = export_key(checkpoint, resolutions, precision)
    if is_exported(folder, key):
        logger.info("%s is up to date", folder)
        return PipelineSpec.read(folder)
    from export.preview import preview_projection  # torch and diffusers take seconds to import
    from export.trace import trace_component

    folder.mkdir(parents=True, exist_ok=True)
    (folder / PIPELINE_FILE).unlink(missing_ok=True)
    components = {
        name: trace_component(checkpoint, folder, name, resolutions, precision)
        for name in components_of(checkpoint.family, checkpoint.task, checkpoint.widths)
    }
    _write_tokenizer(checkpoint, folder / TOKENIZER_FOLDER)
    spec = PipelineSpec(
        checkpoint=checkpoint.name,
        family=checkpoint.family,
        task=checkpoint.task,
        fingerprint=checkpoint.fingerprint,
        key=key,
        prediction_type=checkpoint.schedule["prediction_type"],
        scaling_factor=checkpoint.scaling_factor,
        latent_channels=checkpoint.widths.latent_channels,
        downscale=checkpoint.downscale,
        schedule=checkpoint.schedule,
        resolutions=tuple(resolutions),
        tokenizer=TOKENIZER_FOLDER,
        tokenizer_sha256=folder_sha256(folder / TOKENIZER_FOLDER),
        context_length=checkpoint.widths.context_length,
        text_layers=int(checkpoint.text_config["num_hidden_layers"]),
        components=components,
        preview=preview_projection(checkpoint),
    )
    spec.write(folder)
    return spec


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    checkpoint.tokenizer().save(str(folder / "tokenizer.json"))
    config = {"start": "<|startoftext|>", "end": "<|endoftext|>", "pad": checkpoint.pad_token}
    (folder / "config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
