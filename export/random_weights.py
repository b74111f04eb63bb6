"""A checkpoint of full size with seeded random weights: everything but a download.

Weights are drawn and written one tensor at a time, in fp16. Their spread keeps activations near one, so that every
value stays finite. What comes out is a diffusers folder like any other, and draws noise. The tokenizer has CLIP's
49408 ids and special words, but its merges join any two bytes: CLIP's own are part of a download.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from export.architectures import ARCHITECTURES, Part
from export.checkpoint import INDEX_FILE, NETWORK_FILE
from export.configuration import SOURCE_KEY, network_of, write_configuration
from export.errors import ExportError, unwritable
from export.unfinished import unfinished

logger = logging.getLogger(__name__)

SMALL = 0.02
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)
DTYPES = {torch.float16: "F16", torch.int64: "I64"}


def write_random_checkpoint(name: str, folder: Path, seed: int) -> None:
    """The named architecture as a diffusers folder; nothing is done when it is there with the same seed.

    Raises:
        ExportError: the folder holds something else, or cannot be written.
    """
    source = f"{name}, seed {seed}"
    if any(_source(folder / file) == source for file in (INDEX_FILE, NETWORK_FILE)):
        logger.info("%s is up to date", folder)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is not {source}; remove it, or give another --out")
    architecture = ARCHITECTURES[name]
    try:
        with unfinished(folder.parent, f"{folder.name}-") as made:
            write_configuration(architecture, made, source)
            for part, spec in architecture.parts.items():
                if not spec.kind.endswith("Scheduler"):
                    _write_network(spec, made / part, seed)
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def _source(path: Path) -> str | None:
    """What a checkpoint says of itself that was made here."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get(SOURCE_KEY) if isinstance(content, dict) else None


def _write_network(spec: Part, folder: Path, seed: int) -> None:
    network = network_of(spec)
    file = "model.safetensors" if spec.library == "transformers" else "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    # transformers saves its text model under the name that checkpoints have had since CLIP.
    prefix = "text_model." if spec.kind == "CLIPTextModel" else ""
    state = {prefix + key: (key, value) for key, value in network.state_dict().items()}
    shapes = {name: (list(value.shape), _stored(value)) for name, (_, value) in state.items()}
    tensors = (_draw(network, key, value, generator) for key, value in state.values())
    _write_safetensors(folder / file, shapes, tensors)


def _stored(value: torch.Tensor) -> torch.dtype:
    return torch.float16 if value.is_floating_point() else value.dtype


def _draw(network: nn.Module, key: str, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    owner_name, _, leaf = key.rpartition(".")
    owner = network.get_submodule(owner_name)
    if not value.is_floating_point() or leaf == "running_mean":
        return torch.zeros(value.shape, dtype=_stored(value))
    if leaf == "running_var":
        return torch.ones(value.shape, dtype=torch.float16)
    drawn = torch.randn(value.shape, generator=generator)
    if leaf == "weight" and isinstance(owner, NORMS):
        drawn = drawn.mul_(0.1).add_(1)
    elif leaf == "weight" and isinstance(owner, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        drawn = drawn.mul_(value[0].numel() ** -0.5)
    else:
        drawn = drawn.mul_(SMALL)
    return drawn.half()


def _write_safetensors(
    path: Path, shapes: dict[str, tuple[list[int], torch.dtype]], tensors: Iterable[torch.Tensor]
) -> None:
    """The safetensors format, one tensor after another: a length, a header in JSON, raw little-endian values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in shapes.items():
        start, end = end, end + dtype.itemsize * int(torch.Size(shape).numel())
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    label = path.parent.name or path.name
    with path.open("wb") as stream, tqdm(total=end, unit="B", unit_scale=True, desc=label, disable=None) as bar:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            bar.update(stream.write(tensor.numpy().tobytes()))
