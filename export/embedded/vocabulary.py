"""A CLIP-style byte-pair vocabulary learned from the captions of the drawn world."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from export.embedded.world import caption, sample_scene

START, END = "<|startoftext|>", "<|endoftext|>"
CAPTIONS = 4000
CONTEXT = 77


def learn_merges() -> list[tuple[str, str]]:
    """Merges that make every word of the captions one token."""
    rng = random.Random(0)
    texts = [caption(sample_scene(rng), rng) for _ in range(CAPTIONS)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges]


def write_tokenizer(folder: Path) -> None:
    """`vocab.json` in CLIP's order (bytes, bytes that end a word, merges, specials), `merges.txt` and the configs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges()
    words = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    specials = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")
    config = {**specials, "model_max_length": CONTEXT, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer as transformers reads it."""
    return CLIPTokenizer.from_pretrained(folder)
