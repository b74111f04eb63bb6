"""Checkpoint to a folder that a server can load: ONNX components, tokenizer and `pipeline.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.catalog import COMPONENTS, SIDE_MULTIPLE, Side, components_of
from engines.component import GREY, PIPELINE_FILE, PipelineSpec, Precision, folder_sha256
from engines.errors import ArtefactError
from export.checkpoint import Checkpoint
from export.errors import ExportError, unwritable
from export.reuse import component_key, reused
from export.unfinished import locked, unfinished

logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
# Of a component's files: the graph, its weights when they are large, and how those are found in it.
SUFFIXES = (".onnx", ".onnx.data", ".weights.json")
MAKERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")
SOURCES = (
    "export/architectures.py",
    "export/checkpoint.py",
    "export/configuration.py",
    "export/export.py",
    "export/graph.py",
    "export/loading.py",
    "export/preview.py",
    "export/reuse.py",
    "export/single_file.py",
    "export/to_onnx.py",
    "export/trace.py",
    "export/weights.py",
    "export/wrappers.py",
    "engines/catalog.py",
    "engines/component.py",
    "engines/precision.py",
    "engines/refit.py",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of an export.

    Attributes:
        resolutions: (height, width) in pixels.
        precision: of the weights and most arithmetic; inputs and outputs stay fp32.
        controlled: the UNet takes a ControlNet's residuals.
        components: those to export; empty means all.
        reuse: other export folders, from which components of the same weights are taken.
    """

    resolutions: list[tuple[int, int]]
    precision: Precision = "fp32"
    controlled: bool = False
    components: tuple[str, ...] = ()
    reuse: tuple[Path, ...] = ()


def export_key(checkpoint: Checkpoint, options: Options) -> str:
    """SHA-256 over all that the exported files depend on: weights, options, tracing sources, libraries."""
    parts = {"fingerprint": checkpoint.fingerprint, "controlled": options.controlled, **_ways(options)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _ways(options: Options) -> dict[str, Any]:
    """What every component depends on, beside its weights and its tensors."""
    root = Path(__file__).resolve().parent.parent
    sources = [root / source for source in SOURCES]
    return {
        "resolutions": options.resolutions,
        "precision": options.precision,
        "makers": {name: importlib.metadata.version(name) for name in MAKERS},
        "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources},
    }


def exported(folder: Path, key: str) -> PipelineSpec | None:
    """The export of that key in `folder`, with those of its components whose files are unchanged; None if another's."""
    try:
        spec = PipelineSpec.read(folder)
        intact = {name: component for name, component in spec.components.items() if component.is_intact(folder)}
    except (ArtefactError, OSError):
        return None
    return dataclasses.replace(spec, components=intact) if spec.key == key else None


def check_resolutions(checkpoint: Checkpoint, resolutions: list[tuple[int, int]]) -> None:
    """Raises ExportError where a side is no positive multiple of what the UNet can halve."""
    multiple = SIDE_MULTIPLE * checkpoint.downscale
    if not resolutions:
        raise ExportError("no resolution was given; give at least one, such as 512")
    for height, width in resolutions:
        heights, widths = _nearest(height, multiple), _nearest(width, multiple)
        if (height, width) != (heights[0], widths[0]):
            sizes = dict.fromkeys(f"{h}x{w}" for h, w in zip(heights, widths, strict=True))
            raise ExportError(
                f"resolution {height}x{width} does not fit: both sides must be multiples of {multiple} pixels, "
                f"such as {' or '.join(sizes)}"
            )


def _nearest(side: int, multiple: int) -> tuple[int, int]:
    """The multiples at and above a side, or below and above it."""
    lower = max(1, side // multiple) * multiple
    return lower, lower if lower >= side else lower + multiple


def _chosen(checkpoint: Checkpoint, options: Options) -> dict[str, tuple[Side, Side]]:
    """The tensors of the components that were asked for."""
    known = components_of(checkpoint.family, checkpoint.task, checkpoint.widths, controlled=options.controlled)
    if unknown := [name for name in options.components if name not in known]:
        raise ExportError(f"{checkpoint.name} has no component {', '.join(unknown)}; choose of {', '.join(known)}")
    return {name: known[name] for name in known if not options.components or name in options.components}


def export_checkpoint(checkpoint: Checkpoint, folder: Path, options: Options) -> PipelineSpec:
    """Export components, compare each with torch, publish all at once; nothing is done twice for one key.

    Files are made in a folder inside `folder` and moved when all are complete, so a failure leaves what was there.

    Raises:
        ExportError: the checkpoint, the options, a component that does not match torch, or a disk that is full.
    """
    check_resolutions(checkpoint, options.resolutions)
    chosen = _chosen(checkpoint, options)
    key = export_key(checkpoint, options)
    kept = exported(folder, key)
    missing = {name: tensors for name, tensors in chosen.items() if not kept or name not in kept.components}
    if kept and not missing and folder_sha256(folder / kept.tokenizer) == kept.tokenizer_sha256:
        logger.info("%s is up to date", folder)
        return PipelineSpec.read(folder)
    try:
        with unfinished(folder) as made:
            spec = _export(checkpoint, made, key, options, missing, kept)
            spec.write(made)
            publish(made, folder, spec)
    except OSError as error:
        raise unwritable(folder, error) from error
    return spec


def _export(
    checkpoint: Checkpoint,
    folder: Path,
    key: str,
    options: Options,
    tensors: dict[str, tuple[Side, Side]],
    kept: PipelineSpec | None,
) -> PipelineSpec:
    from export.preview import preview_projection  # torch and diffusers take seconds to import
    from export.trace import trace_component

    ways, components, shared = _ways(options), {}, {}
    for name, sides in tensors.items():
        source = component_key(checkpoint, name, sides, ways)
        if found := reused(source, name, options.reuse, SUFFIXES, folder):
            components[name], shared[name] = found
            logger.info("%s: as in another export", name)
        else:
            traced = trace_component(checkpoint, folder, name, sides, options.resolutions, options.precision)
            components[name] = dataclasses.replace(traced, source=source)
    for part in checkpoint.tokenizers:
        write_tokenizer(checkpoint, folder / TOKENIZER_FOLDER, part)
    if kept:
        both = {**kept.components, **components}
        ordered = {name: both[name] for name in COMPONENTS[checkpoint.family, checkpoint.task] if name in both}
        return dataclasses.replace(kept, components=ordered)
    if "vae_encoder" in shared and "vae_decoder" in shared:
        preview = shared["vae_decoder"].preview
    else:
        preview = GREY if checkpoint.is_controlnet else preview_projection(checkpoint)
    text = checkpoint.text_config("text_encoder") or checkpoint.text_config("text_encoder_2")
    return PipelineSpec(
        checkpoint=checkpoint.name,
        family=checkpoint.family,
        task=checkpoint.task,
        fingerprint=checkpoint.fingerprint,
        key=key,
        prediction_type=checkpoint.schedule.get("prediction_type", ""),
        scaling_factor=checkpoint.scaling_factor,
        latent_channels=checkpoint.widths.latent_channels,
        downscale=checkpoint.downscale,
        schedule=checkpoint.schedule,
        resolutions=tuple(options.resolutions),
        tokenizer=TOKENIZER_FOLDER,
        tokenizer_sha256=folder_sha256(folder / TOKENIZER_FOLDER),
        context_length=checkpoint.widths.context_length,
        text_layers=int(text.get("num_hidden_layers", 0)),
        components=components,
        low_res_schedule=checkpoint.low_res_schedule,
        max_noise_level=checkpoint.max_noise_level,
        preview=preview,
    )


def publish(made: Path, folder: Path, spec: PipelineSpec) -> None:
    """Move what is new; `pipeline.json` goes first and comes last, so that it never speaks of other files."""
    with locked(folder):
        (folder / PIPELINE_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
        names = {path.name.partition(".")[0] for path in made.iterdir()}
        for suffix in SUFFIXES:
            for path in folder.glob(f"*{suffix}"):
                if (name := path.name.removesuffix(suffix)) in names or name not in spec.components:
                    path.unlink()
        for path in sorted(made.iterdir(), key=lambda path: path.name == PIPELINE_FILE):
            path.rename(folder / path.name)


def write_tokenizer(checkpoint: Checkpoint, folder: Path, part: str = "tokenizer") -> None:
    """`tokenizer.json` and `config.json`; those of a second text encoder are called `..._2.json`."""
    folder.mkdir(exist_ok=True)
    number = part.removeprefix("tokenizer")
    checkpoint.tokenizer(part).save(str(folder / f"tokenizer{number}.json"))
    config = {"start": "<|startoftext|>", "end": "<|endoftext|>", "pad": checkpoint.pad_token(part)}
    (folder / f"config{number}.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
