"""Prompts to token ids, with the `tokenizers` library alone."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from engines.errors import ArtefactError


class PromptTokenizer:
    """CLIP's tokenizer as exported beside the components.

    Attributes:
        start, end, pad: their ids.
        comma: its id; None where the vocabulary has no such word.
        length: tokens of a chunk, start and end included.

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
            found = {part: self._tokenizer.token_to_id(words[part]) for part in ("start", "end", "pad")}
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ArtefactError(
                f"the tokenizer in {folder} cannot be read ({error}); run `python -m export` again"
            ) from None
        ids = {part: value for part, value in found.items() if value is not None}
        if len(ids) < len(found):
            raise ArtefactError(
                f"the tokenizer in {folder} lacks a special token of {words}; run `python -m export` again"
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.start, self.end, self.pad = ids["start"], ids["end"], ids["pad"]
        commas = self.words(",")
        self.comma = commas[0] if len(commas) == 1 else None
        self.length = length

    def words(self, text: str) -> list[int]:
        """Token ids of a text, without start and end."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found
