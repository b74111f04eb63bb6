"""A checkpoint without its weights: configurations and tokenizers in files, networks that are shapes alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.architectures import END, START, Architecture, Part
from export.checkpoint import INDEX_FILE, NETWORK_FILE

SOURCE_KEY = "_made_from"
VOCABULARY = 49408
CONTEXT = 77


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
        path = folder / NETWORK_FILE
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
