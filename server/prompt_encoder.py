"""Texts to embeddings: chunks through the text encoder, weighted, and kept for the next request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engines.profiles import MAX_CHUNKS
from engines.runner import Runner
from server.chunks import Chunked, chunk
from server.conditioning import Array, Text, fragments
from server.emphasis import Mode, weigh
from server.errors import InvalidRequest
from server.tokenizer import PromptTokenizer

EMBEDDINGS_KEPT = 512
BYTES_KEPT = 256 << 20
# Of all texts of a request, filled up to the longest one.
CHUNKS_PER_REQUEST = 96
# Of one call of the text encoder, at most.
ROWS = 32
# ComfyUI does not cut fragments of fewer tokens in two.
COMFY_WHOLE = 8
# How each syntax applies its weights.
MODES: dict[str, Mode] = {
    "none": "ignore",
    "a1111": "a1111",
    "a1111_no_norm": "a1111_no_norm",
    "a1111_ignore": "ignore",
    "comfy": "comfy",
    "compel": "compel",
}


@dataclass(frozen=True, slots=True)
class Embedding:
    """An encoded text: (tokens, width) float32; its tokens that were used and dropped; its chunks."""

    states: Array
    used: int
    dropped: int
    chunks: int


class PromptEncoder:
    """The text encoder with its tokenizer and what it encoded last. Its methods may be called from several threads.

    Args:
        runner: of the text encoder.
        tokenizer: of the checkpoint.
        rows: of a call, at most; 0 leaves it to us.
        tokens: the fewest and the most of an embedding that the UNet takes; None takes any.

    Attributes:
        hits, misses: texts that were found encoded, and that were not.
    """

    def __init__(
        self, runner: Runner, tokenizer: PromptTokenizer, rows: int = 0, tokens: tuple[int, int] | None = None
    ) -> None:
        self.hits = self.misses = 0
        self._runner = runner
        self._tokenizer = tokenizer
        self._rows = min(rows or ROWS, ROWS)
        self._tokens = tokens
        self._kept: OrderedDict[Text, Embedding] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[Text]) -> dict[Text, Embedding]:
        """Encode texts, each once; all as long as the longest, filled up with the empty text.

        Raises:
            InvalidRequest: they are too many and too long, or longer than the UNet takes.
        """
        self._check_size(texts)
        found = self._encoded(texts)
        longest = max(embedding.chunks for embedding in found.values())
        self._check_tokens(longest)
        short = [text for text, embedding in found.items() if embedding.chunks < longest]
        if not short:
            return found
        empty = self._encoded([_empty(text) for text in short])
        for text in short:
            missing = longest - found[text].chunks
            states = np.concatenate([found[text].states, *missing * [empty[_empty(text)].states]])
            found[text] = replace(found[text], states=states)
        return found

    def _encoded(self, texts: Sequence[Text]) -> dict[Text, Embedding]:
        wanted = list(dict.fromkeys(texts))
        with self._lock:
            found = {text: self._kept[text] for text in wanted if text in self._kept}
            for text in found:
                self._kept.move_to_end(text)
            self.hits += len(found)
            self.misses += len(wanted) - len(found)
        if missing := [text for text in wanted if text not in found]:
            fresh = self._run(missing)
            found |= fresh
            with self._lock:
                self._keep(fresh)
        return {text: found[text] for text in wanted}

    def _keep(self, fresh: dict[Text, Embedding]) -> None:
        for text, embedding in fresh.items():
            if text not in self._kept:
                self._kept[text] = embedding
                self._bytes += embedding.states.nbytes
        while len(self._kept) > EMBEDDINGS_KEPT or self._bytes > BYTES_KEPT:
            self._bytes -= self._kept.popitem(last=False)[1].states.nbytes

    def _check_size(self, texts: Sequence[Text]) -> None:
        if len(texts) * MAX_CHUNKS <= CHUNKS_PER_REQUEST:
            return
        longest = max(len(self._chunks(text).chunks) for text in texts)
        if len(texts) * longest > CHUNKS_PER_REQUEST:
            raise InvalidRequest(
                f"the prompts change into {len(texts)} texts of up to {longest} chunks; send at most "
                f"{CHUNKS_PER_REQUEST} chunks in all: use fewer [a|b] and [a:b:0.4], or shorter prompts"
            )

    def _check_tokens(self, chunks: int) -> None:
        length = self._tokenizer.length
        least, most = self._tokens or (0, chunks * length)
        if not least <= chunks * length <= most:
            raise InvalidRequest(
                f"the longest prompt has {chunks} chunks of {length} tokens, and this server's UNet is compiled for "
                f"{least} to {most} tokens: send {-(-least // length)} to {most // length} chunks, or build its plans "
                f"with --tokens {length}:{length}:{MAX_CHUNKS * length}"
            )

    def _run(self, texts: Sequence[Text]) -> dict[Text, Embedding]:
        """All chunks of all texts through the text encoder, so many at a time."""
        chunked = {text: self._chunks(text) for text in texts}
        ids = [part.ids for found in chunked.values() for part in found.chunks]
        skips = [text.clip_skip for text, found in chunked.items() for _ in found.chunks]
        parts = []
        for first in range(0, len(ids), self._rows):
            some = slice(first, first + self._rows)
            feeds = {"input_ids": np.stack(ids[some]), "clip_skip": np.array(skips[some], np.int32)}
            parts.append(self._runner.infer(feeds)["last_hidden_state"])
        rows = np.concatenate(parts)
        made, start = {}, 0
        for text, found in chunked.items():
            count = len(found.chunks)
            states = self._weighed(text, rows[start : start + count], np.stack([part.weights for part in found.chunks]))
            made[text] = Embedding(np.concatenate(states), found.used, found.dropped, count)
            start += count
        return made

    def _chunks(self, text: Text) -> Chunked:
        """Without a syntax there is one chunk, and what does not fit is cut off at the end, as in diffusers."""
        pieces = fragments(text.text, text.syntax)
        if text.syntax == "none":
            return chunk(pieces, self._tokenizer, max_chunks=1, comma_reach=0)
        if text.syntax == "comfy":
            return chunk(pieces, self._tokenizer, comma_reach=0, whole=COMFY_WHOLE)
        return chunk(pieces, self._tokenizer)

    def _weighed(self, text: Text, states: Array, weights: Array) -> Array:
        """(chunks, length, width), with (chunks, length) weights applied."""
        if (weights == 1).all():
            return states
        mode = MODES[text.syntax]
        empty = self._encoded([_empty(text)])[_empty(text)].states if mode in ("comfy", "compel") else None
        return weigh(states, weights, mode, empty)


def _empty(text: Text) -> Text:
    return text._replace(text="")
