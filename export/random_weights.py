"""A checkpoint of full size with seeded random weights: everything but a download.

Weights are drawn and written one tensor at a time, in fp16. Their spread keeps activations near one, so that every
value stays finite. What comes out is a diffusers folder like any other, and draws noise. The tokenizer has CLIP's
49408 ids and special words, but its merges join any two bytes: CLIP's own are part of a download.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from export.architectures import ARCHITECTURES, END, START, Architecture, Part
from export.errors import ExportError

logger = logging.getLogger(__name__)

INDEX_FILE = "model_index.json"
SOURCE_KEY = "_random_weights"
VOCABULARY = 49408
CONTEXT = 77
SMALL = 0.02
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)
DTYPES = {torch.float16: "F16", torch.int64: "I64"}


def write_random_checkpoint(name: str, folder: Path, seed: int) -> None:
    """The named architecture as a diffusers folder; nothing is done when it is there with the same seed.

    Raises:
        ExportError: the folder holds something else.
    """
    source = f"{name}, seed {seed}"
    marks = [folder / file for file in (INDEX_FILE, "config.json")]
    if any(mark.is_file() and json.loads(mark.read_text()).get(SOURCE_KEY) == source for mark in marks):
        logger.info("%s is up to date", folder)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is not {source}; remove it, or give another --out")
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        architecture = ARCHITECTURES[name]
        write_configuration(architecture, unfinished, source)
        for part, spec in architecture.parts.items():
            if not spec.kind.endswith("Scheduler"):
                _write_network(spec, unfinished / part, seed)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_configuration(architecture: Architecture, folder: Path, source: str) -> None:
    """Everything of a checkpoint but its weights, as diffusers' and transformers' loaders read it."""
    for part, spec in architecture.parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        if spec.library == "transformers":
            _class(spec).config_class(**spec.config).save_pretrained(folder / part)
        else:
            # Networks are built on the meta device: their configuration has every default filled in.
            _build(spec).save_config(folder / part)
    for part, pad in architecture.tokenizers.items():
        write_tokenizer(folder / part, pad)
    if architecture.pipeline:
        index = {part: [spec.library, spec.kind] for part, spec in architecture.parts.items()}
        index |= {part: ["transformers", "CLIPTokenizer"] for part in architecture.tokenizers}
        content = {"_class_name": architecture.pipeline, SOURCE_KEY: source, **index}
        (folder / INDEX_FILE).write_text(json.dumps(content, indent=1) + "\n")
    else:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), SOURCE_KEY: source}, indent=1) + "\n")


def write_tokenizer(folder: Path, pad: str) -> None:
    """CLIP's shape of vocabulary: bytes, bytes that end a word, merges, the two special words last."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    ends = [letter + "</w>" for letter in letters]
    merges = list(itertools.islice(itertools.product(letters, ends + letters), VOCABULARY - len(letters + ends) - 2))
    words = [*letters, *ends, *(a + b for a, b in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    specials = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    config = {**specials, "model_max_length": CONTEXT, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _class(spec: Part) -> Any:
    import diffusers
    import transformers

    return getattr({"diffusers": diffusers, "transformers": transformers}[spec.library], spec.kind)


def _build(spec: Part) -> Any:
    kind = _class(spec)
    with torch.device("cpu" if spec.kind.endswith("Scheduler") else "meta"):
        return kind(kind.config_class(**spec.config)) if spec.library == "transformers" else kind(**spec.config)


def network_of(spec: Part) -> nn.Module:
    """The network of a part on the meta device: shapes without values."""
    network: nn.Module = _build(spec)
    return network


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
