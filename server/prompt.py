"""Prompt syntax: emphasis as AUTOMATIC1111's webui reads it, and its `AND`.

A prompt is read in this order: `parse_composition`, then `server.prompt_schedule` for each part, then `parse_emphasis`
for each text. No text is an error: what is not syntax is text.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Final

ROUND = 1.1
SQUARE = 1 / 1.1
# A fragment is multiplied once per bracket around it, one after the other as A1111 does, to the last bit of the result.
MAX_DEPTH = 32
MAX_WEIGHT = 1e6

_PIECE = re.compile(r"\\[\\()\[\]]?|:\s*([+-]?[.\d]+)\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a prompt and its weight, within `MAX_WEIGHT`; each is tokenized on its own."""

    text: str
    weight: float
    ends_chunk: bool = False


BREAK: Final = Fragment("", 1.0, ends_chunk=True)


def weight_of(text: str) -> float | None:
    """The number that Python reads in a text; None for what is no number within `MAX_WEIGHT`."""
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if -MAX_WEIGHT <= weight <= MAX_WEIGHT else None


def limited(weight: float) -> float:
    """The nearest weight within `MAX_WEIGHT`."""
    return min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)


def parse_emphasis(text: str) -> list[Fragment]:
    r"""Fragments as A1111's `parse_prompt_attention` gives them.

    `(x)` is 1.1 times the weight around it, `(x:1.3)` 1.3 times, `[x]` 1 / 1.1 times; `\(`, `\)`, `\[`, `\]` and `\\`
    are the characters themselves, and any other backslash vanishes. Round and square brackets are matched
    independently; one that is never closed reaches to the end. Neighbours of equal weight are one fragment.

    A1111 keeps BREAK as a text of weight -1, which a weighted bracket around it multiplies: `(a BREAK b:1.2)` has the
    word "BREAK" at -1.2 and no break. It is so here too. Differences: `(x:1.2.3)` stops A1111; here what is no number,
    or one beyond `MAX_WEIGHT`, is text, and so are brackets more than `MAX_DEPTH` deep.
    """
    reader = _Emphasis()
    for match in _PIECE.finditer(text):
        reader.read(match.group(), match.group(1))
    return reader.fragments()


class _Emphasis:
    """The state of `parse_emphasis`: a text and a weight per piece so far, and where the open brackets began."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._weights: list[float] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}
        self._too_deep = {"(": 0, "[": 0}

    def read(self, piece: str, weight: str | None) -> None:
        """One piece: an escape, a bracket, the end of a weighted bracket (`weight` is its number), or text."""
        if piece[0] == "\\":
            self._texts.append(piece[1:])
            self._weights.append(1.0)
        elif piece in self._open:
            self._begin(piece)
        elif weight is not None:
            factor = weight_of(weight)
            if factor is None:
                self._write(piece[:-1])
                self._end("(", ROUND, ")")
            else:
                self._end("(", factor, piece)
        elif piece == ")":
            self._end("(", ROUND, piece)
        elif piece == "]":
            self._end("[", SQUARE, piece)
        else:
            self._write(piece)

    def fragments(self) -> list[Fragment]:
        """Everything read; closes what is still open, outermost first, as A1111 does."""
        for start in self._open["("]:
            self._multiply(start, ROUND)
        for start in self._open["["]:
            self._multiply(start, SQUARE)
        pieces = zip(self._weights, self._texts, strict=True)
        runs = itertools.groupby(pieces, key=lambda piece: piece[0])
        found = [_fragment("".join(text for _, text in run), weight) for weight, run in runs]
        return found or [Fragment("", 1.0)]

    def _write(self, text: str) -> None:
        # White space around BREAK is cut by hand: a pattern with `\s*` on both sides is quadratic in a run of spaces.
        parts = _BREAK.split(text) if "BREAK" in text else [text]
        for index, part in enumerate(parts):
            start = part.lstrip() if index else part
            self._texts.append(start.rstrip() if index < len(parts) - 1 else start)
            self._weights.append(1.0)
            if index < len(parts) - 1:
                self._texts.append("BREAK")
                self._weights.append(-1.0)

    def _begin(self, bracket: str) -> None:
        if len(self._open[bracket]) == MAX_DEPTH:
            self._too_deep[bracket] += 1
            self._write(bracket)
        else:
            self._open[bracket].append(len(self._texts))

    def _end(self, bracket: str, factor: float, piece: str) -> None:
        if self._too_deep[bracket]:
            self._too_deep[bracket] -= 1
            self._write(piece)
        elif self._open[bracket]:
            self._multiply(self._open[bracket].pop(), factor)
        else:
            self._write(piece)

    def _multiply(self, start: int, factor: float) -> None:
        self._weights[start:] = [weight * factor for weight in self._weights[start:]]


def _fragment(text: str, weight: float) -> Fragment:
    if (text, weight) == ("BREAK", -1.0):
        return BREAK
    return Fragment(text, limited(weight))


def parse_composition(text: str) -> list[tuple[str, float]]:
    """The parts between `AND`s and the weight after each part's last colon, as A1111's `get_multicond_prompt_list`.

    Spaces at the end of a part are cut. A prompt without `AND` is one part, and has a weight too: `portrait: 3` is
    `portrait` at 3. `AND` is not protected by brackets.
    """
    return [_part(part.rstrip()) for part in _AND.split(text)]


def _part(text: str) -> tuple[str, float]:
    head, colon, tail = text.rpartition(":")
    tail = tail.lstrip()
    weight = weight_of(tail) if colon and _NUMBER.fullmatch(tail) else None
    return (text, 1.0) if weight is None else (head.rstrip(), weight)
