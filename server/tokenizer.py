"""Prompts to token ids, with the `tokenizers` library alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from engines.errors import ArtefactError


@dataclass(frozen=True, slots=True)
class Tokens:
    """One prompt.

    Attributes:
        ids: (context_length,) int32: start, the prompt, end, padding.
        used: tokens of the prompt that fit, start and end not counted.
        dropped: tokens that did not fit.
    """

    ids: npt.NDArray[np.int32]
    used: int
    dropped: int


class PromptTokenizer:
    """CLIP's tokenizer as exported beside the components.

    Args:
        folder: with `tokenizer.json` and `config.json`.
        length: tokens per prompt, start and end included.

    Raises:
        ArtefactError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, length: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            words = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            ids = {part: self._tokenizer.token_to_id(words[part]) for part in ("start", "end", "pad")}
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ArtefactError(
                f"the tokenizer in {folder} cannot be read ({error}); run `python -m export` again"
            ) from None
        if None in ids.values():
            raise ArtefactError(
                f"the tokenizer in {folder} lacks a special token of {words}; run `python -m export` again"
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._start, self._end, self._pad = ids["start"], ids["end"], ids["pad"]
        self._length = length

    def encode(self, text: str) -> Tokens:
        """Token ids of a prompt; what does not fit is dropped from its end, and counted."""
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        kept = found[: self._length - 2]
        ids = np.full(self._length, self._pad, np.int32)
        ids[: len(kept) + 2] = [self._start, *kept, self._end]
        return Tokens(ids, len(kept), len(found) - len(kept))
