"""The learned vocabulary: one token per word, read by transformers as CLIP's is."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from export.embedded.vocabulary import CONTEXT, END, START, load_tokenizer, write_tokenizer
from export.embedded.world import caption, sample_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vocabulary") / "tokenizer"
    write_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def captions(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [caption(sample_scene(rng), rng) for _ in range(count)]


def test_every_word_of_a_caption_is_one_token(tokenizer: Any) -> None:
    for text in captions(1000, seed=99):
        words = re.findall(r"\w+|,", text)
        assert [t.removesuffix("</w>") for t in tokenizer.tokenize(text)] == words


def test_texts_are_framed_and_padded_as_clips_are(tokenizer: Any) -> None:
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    ids = tokenizer(["a red circle", ""], padding="max_length", max_length=CONTEXT, truncation=True)["input_ids"]
    assert [len(row) for row in ids] == [CONTEXT, CONTEXT]
    assert [row[0] for row in ids] == [start, start]
    assert [row.index(end) for row in ids] == [4, 1]
    assert {i for row in ids for i in row[row.index(end) :]} == {end}


def test_the_end_has_the_highest_id(tokenizer: Any) -> None:
    """CLIP's text model looks for the end of a text at the largest id."""
    assert tokenizer.convert_tokens_to_ids([START, END]) == [len(tokenizer) - 2, len(tokenizer) - 1]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (START, END, END)


def test_long_texts_keep_their_end(tokenizer: Any) -> None:
    ids = tokenizer("red " * 200, max_length=CONTEXT, truncation=True)["input_ids"]
    assert (len(ids), ids[-1]) == (CONTEXT, tokenizer.eos_token_id)


def test_case_and_spaces_do_not_matter(tokenizer: Any) -> None:
    assert tokenizer("A Red\n  CIRCLE ")["input_ids"] == tokenizer("a red circle")["input_ids"]


def test_foreign_text_is_spelled_in_bytes(tokenizer: Any) -> None:
    ids = tokenizer("naïve 木 9")["input_ids"]
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "naïve 木 9"


def test_the_files_are_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
