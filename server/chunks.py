"""Fragments of a prompt to the chunks that the text encoder takes, as AUTOMATIC1111's webui cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engines.profiles import MAX_CHUNKS
from server.prompt import Fragment

COMMA_REACH = 20


class Vocabulary(Protocol):
    """What chunking needs of a tokenizer: ids of special tokens, and of the comma where it is a token of its own."""

    @property
    def length(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def comma(self) -> int | None: ...

    def words(self, text: str) -> Sequence[int]:
        """Token ids of a text, without start and end."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """What the text encoder takes at once.

    Attributes:
        ids: (length,) int32: start, tokens, end, padding.
        weights: (length,) float32, 1 for all but the tokens.
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]


class Chunked(NamedTuple):
    """A prompt, and how many of its tokens are in the chunks and how many did not fit."""

    chunks: tuple[Chunk, ...]
    used: int
    dropped: int


def chunk(
    fragments: Sequence[Fragment],
    vocabulary: Vocabulary,
    *,
    max_chunks: int = MAX_CHUNKS,
    comma_reach: int = COMMA_REACH,
    whole: int = 0,
) -> Chunked:
    """Tokenize each fragment and cut the tokens into at least one chunk, as A1111's `tokenize_line` does.

    When a chunk is full and one of its last `comma_reach` tokens is a comma, what follows the comma moves to the next
    chunk. BREAK ends a chunk, also an empty one, but starts none at the end of the prompt.

    Args:
        max_chunks: tokens of further chunks are dropped, and counted.
        comma_reach: 0 cuts wherever a chunk is full.
        whole: fragments of fewer tokens are not cut in two if the next chunk can avoid it. ComfyUI keeps those of
            fewer than 8 whole, and has no `comma_reach`.
    """
    cutter = _Cutter(vocabulary.length - 2, comma_reach, vocabulary.comma)
    for fragment in fragments:
        if fragment.ends_chunk:
            cutter.close()
            continue
        tokens = vocabulary.words(fragment.text)
        if len(tokens) < whole:
            cutter.make_room(len(tokens))
        for token in tokens:
            cutter.add(token, fragment.weight)
    parts = cutter.parts()
    sizes = [len(part.ids) for part in parts]
    used = sum(sizes[:max_chunks])
    return Chunked(tuple(_chunk(part, vocabulary) for part in parts[:max_chunks]), used, sum(sizes) - used)


@dataclass(slots=True)
class _Part:
    """The tokens of one chunk; `comma` is the place of the last one that may be cut after, or -1."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    comma: int = -1

    def split(self, place: int) -> _Part:
        """Take everything from that place on."""
        rest = _Part(self.ids[place:], self.weights[place:])
        del self.ids[place:], self.weights[place:]
        return rest


class _Cutter:
    """Tokens one by one into parts of at most `room`."""

    def __init__(self, room: int, comma_reach: int, comma: int | None) -> None:
        self._room = room
        self._comma_reach = comma_reach
        self._comma = comma
        self._closed: list[_Part] = []
        self._part = _Part()

    def add(self, token: int, weight: float) -> None:
        """Append a token, in a new part if this one is full."""
        part = self._part
        if len(part.ids) == self._room:
            near = part.comma >= 0 and self._room - part.comma <= self._comma_reach
            # A1111 does not go back to a comma for a comma, nor later to one that has begun a chunk.
            moved = part.split(part.comma + 1) if near and token != self._comma else _Part()
            self.close()
            self._part = moved
        elif token == self._comma:
            part.comma = len(part.ids)
        self._part.ids.append(token)
        self._part.weights.append(weight)

    def close(self) -> None:
        """End the part, empty or not."""
        self._closed.append(self._part)
        self._part = _Part()

    def make_room(self, count: int) -> None:
        """Begin a new part if the tokens do not fit into this one."""
        if self._part.ids and len(self._part.ids) + count > self._room:
            self.close()

    def parts(self) -> list[_Part]:
        """All parts; the last one only if there is something in it, or nothing else."""
        return [*self._closed, self._part] if self._part.ids or not self._closed else self._closed


def _chunk(part: _Part, vocabulary: Vocabulary) -> Chunk:
    ids = np.full(vocabulary.length, vocabulary.pad, np.int32)
    weights = np.ones(vocabulary.length, np.float32)
    ids[: len(part.ids) + 2] = [vocabulary.start, *part.ids, vocabulary.end]
    weights[1 : len(part.ids) + 1] = part.weights
    return Chunk(ids, weights)
