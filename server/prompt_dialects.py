"""Emphasis as ComfyUI and as compel write it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

from server.prompt import MAX_DEPTH, ROUND, Fragment, limited, weight_of

COMPEL_MINUS = 0.9
# Python raises OverflowError from 1.1 ** 7500 or so.
COMPEL_SIGNS = 1000

_BRACKET = re.compile(r"\\[()]|[()]")
_COMPEL_PIECE = re.compile(r"\(|\)(?:\++|-+|\d+(?:\.\d+)?|\.\d+)?|(?:\\\S|[^\s()])+")
_COMPEL_ESCAPE = re.compile(r"\\([()+\-\"])")
_PUNCTUATION = ",.;:!?\"'"


def parse_emphasis_comfy(text: str) -> list[Fragment]:
    r"""Fragments as ComfyUI's `token_weights` (`comfy/sd1_clip.py`) gives them.

    `(x)` is 1.1 times the weight around it; `(x:1.3)` is 1.3 whatever is around it. The number is what follows the
    last colon of the bracket, in any spelling that Python reads. `\(` and `\)` are characters, square brackets too, and
    there is no BREAK. Neighbours of equal weight stay apart. A closing bracket too many makes the next opening one
    text; what is never closed is text, unless it ends in a bracket, which then closes it.

    Differences: infinity, NaN and weights beyond `MAX_WEIGHT` are text, and so are brackets deeper than `MAX_DEPTH`.
    """
    return list(_Comfy(text).fragments()) or [Fragment("", 1.0)]


class _Comfy:
    """A text and its brackets: where each one that opens a group stands, and where it is closed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._openings: list[int] = []
        self._closing: dict[int, int] = {}
        surplus = 0
        unclosed: list[int] = []
        for match in _BRACKET.finditer(text):
            piece, at = match.group(), match.start()
            if piece == "(" and surplus:
                surplus -= 1
            elif piece == "(":
                unclosed.append(at)
                self._openings.append(at)
            elif piece == ")" and unclosed:
                self._closing[unclosed.pop()] = at
            elif piece == ")":
                surplus += 1
        self._closings = set(self._closing.values())

    def fragments(self) -> Iterator[Fragment]:
        """From left to right; without recursion."""
        waiting = [(0, len(self._text), 1.0, 0)]
        while waiting:
            start, end, weight, depth = waiting.pop()
            index = bisect_left(self._openings, start)
            opening = min(self._openings[index], end) if index < len(self._openings) else end
            yield from self._fragment(start, opening, weight)
            closing = self._close(opening, end)
            if closing is None or depth == MAX_DEPTH:
                yield from self._fragment(opening, end, weight)
            else:
                waiting.append((closing + 1, end, weight, depth))
                waiting.append((*self._weighted(opening + 1, closing, weight), depth + 1))

    def _close(self, opening: int, end: int) -> int | None:
        """Where the group that opens there is closed, in a text up to `end`; None when it is text."""
        closing = min(self._closing.get(opening, end), end - 1)
        return closing if closing > opening and closing in self._closings else None

    def _weighted(self, start: int, end: int, weight: float) -> tuple[int, int, float]:
        colon = self._text.rfind(":", start, end)
        given = weight_of(self._text[colon + 1 : end]) if colon > start else None
        return (start, end, weight * ROUND) if given is None else (start, colon, given)

    def _fragment(self, start: int, end: int, weight: float) -> Iterator[Fragment]:
        text = self._text[start:end].replace(r"\)", ")").replace(r"\(", "(")
        if text:
            yield Fragment(text, limited(weight))


def parse_emphasis_compel(text: str) -> list[Fragment]:
    r"""Fragments of a subset of compel's syntax (github.com/damian0815/compel, `doc/syntax.md`).

    `word+` is 1.1, `word++` 1.1 ** 2, `word-` 0.9; `(some words)+`, `(some words)--` and `(some words)1.3` likewise,
    the sign or number touching the bracket; they nest and multiply. Brackets without a weight vanish, those that do not
    match are text, and `\(`, `\)`, `\+`, `\-` and `\"` are characters. Neighbours of equal weight are one fragment,
    joined by a space as compel does.

    Not read, and so text: `.blend()`, `.and()`, `.swap()`, `.attend()`, `withLora()` and weights after quotation marks.
    """
    fragments: list[Fragment] = []
    for word, weight in _compel_words(text):
        clear = _COMPEL_ESCAPE.sub(r"\1", word)
        if fragments and fragments[-1].weight == weight:
            clear = f"{fragments.pop().text} {clear}"
        fragments.append(Fragment(clear, weight))
    return fragments or [Fragment("", 1.0)]


def _compel_words(text: str) -> Iterator[tuple[str, float]]:
    """Words, escapes and all, and their weights; brackets that do not match are parts of words."""
    pieces = list(_COMPEL_PIECE.finditer(text))
    factors = _compel_factors([match.group() for match in pieces])
    weights = [1.0]
    word, end = "", 0
    for index, match in enumerate(pieces):
        if word and (index in factors or match.start() > end):
            yield from _compel_weight(word, weights[-1])
            word = ""
        end = match.end()
        if index not in factors:
            word += match.group()
        elif match.group() == "(":
            weights.append(limited(weights[-1] * factors[index]))
        else:
            weights.pop()
    if word:
        yield from _compel_weight(word, weights[-1])


def _compel_factors(pieces: list[str]) -> dict[int, float]:
    """The weight of each bracket that matches another, by its place among the pieces."""
    factors: dict[int, float] = {}
    unclosed: list[int] = []
    for index, piece in enumerate(pieces):
        if piece == "(":
            unclosed.append(index)
        elif piece[0] == ")" and unclosed:
            opening = unclosed.pop()
            factors[opening] = factors[index] = _compel_factor(piece[1:])
    return factors


def _compel_factor(suffix: str) -> float:
    if suffix[:1] in ("+", "-"):
        return (ROUND if suffix[0] == "+" else COMPEL_MINUS) ** min(len(suffix), COMPEL_SIGNS)
    weight = weight_of(suffix)
    return 1.0 if weight is None else weight


def _compel_weight(word: str, weight: float) -> Iterator[tuple[str, float]]:
    """A word, split into what its own signs weigh and the punctuation after them."""
    core = word.rstrip(_PUNCTUATION)
    body = core.rstrip(core[-1:]) if core[-1:] in ("+", "-") else core
    if (len(body) - len(body.rstrip("\\"))) % 2:
        body = core[: len(body) + 1]
    signs, rest = core[len(body) :], word[len(core) :]
    if not body or not signs:
        yield word, weight
        return
    yield body, limited(weight * _compel_factor(signs))
    if rest:
        yield rest, weight
