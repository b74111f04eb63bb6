"""Prompts that change from step to step: `[from:to:when]` and `[one|other]`, as AUTOMATIC1111's webui reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import TypeAlias, Union, cast

_PIECE = re.compile(r"[\[\]():|]|(?:[^\\\[\]():|]+|\\.)+|\\")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")

Node: TypeAlias = Union[str, "Nodes", "_Switch", "_Alternation"]
Nodes: TypeAlias = list[Node]


def parse_schedule(text: str, steps: int, hires_steps: int | None = None) -> list[tuple[int, str]]:
    r"""What a prompt says at each step: (last step of the text, counted from 1, inclusive; text), in order of steps.

    `[a:b:when]` is a up to step `when` and b after it; `[b:when]` and `[a::when]` add and remove. `[a|b|...]` changes
    at every step. They nest, also inside `(...)` and `[...]`, which stay in the text with their weights, as do escapes.
    `when` with a decimal point is a fraction of `steps`, without one a step; both are cut down to whole steps.

    With `hires_steps` this is the schedule of a second pass of so many steps after `steps`: steps are counted on from
    the first pass, and fractions begin at 1.

    Brackets that do not fit are text. Like A1111, a prompt with a `|` outside an alternation, or with a backslash at
    its end or at the end of a line, is text as a whole. A1111's grammar is ambiguous where a bracket is never opened
    or closed, and its parser picks at random there; here whatever can be a schedule is one.
    """
    reader = _Reader(steps, hires_steps)
    nodes = reader.read(text)
    if nodes is None:
        return [(reader.steps, text)]
    nodes = _joined(nodes)
    return [(step, _text_at(step, nodes)) for step in sorted(reader.ends)]


def _joined(nodes: Nodes) -> Nodes:
    """The same with neighbouring texts as one."""
    joined: Nodes = []
    for is_text, run in groupby(nodes, key=lambda node: isinstance(node, str)):
        found = list(run)
        joined += ["".join(cast("list[str]", found))] if is_text else found
    return joined


def _text_at(step: int, nodes: Nodes) -> str:
    # Without recursion: a prompt may nest deeper than Python calls.
    texts: list[str] = []
    waiting: Nodes = [nodes]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, list):
            waiting.extend(reversed(node))
        else:
            waiting.append(node.at(step))
    return "".join(texts)


@dataclass(frozen=True, slots=True)
class _Switch:
    """`[before:after:when]`."""

    before: Nodes
    after: Nodes
    when: int

    def at(self, step: int) -> Nodes:
        return self.before if step <= self.when else self.after


@dataclass(frozen=True, slots=True)
class _Alternation:
    """`[one|other]`."""

    options: list[Nodes]

    def at(self, step: int) -> Nodes:
        return self.options[(step - 1) % len(self.options)]


class _Bracket:
    """An open bracket: what came since, cut at its own separators."""

    def __init__(self, opening: str) -> None:
        self.opening = opening
        self.parts: list[Nodes] = [[]]
        self.separators = ""

    def separate(self, separator: str) -> None:
        self.parts.append([])
        self.separators += separator

    def literal(self) -> Nodes:
        """Its own characters and what lies between them."""
        found: Nodes = [self.opening]
        for part, separator in zip_longest(self.parts, self.separators, fillvalue=""):
            found.extend((*part, separator))
        return found


class _Reader:
    """One pass over the pieces of a prompt, with a stack of open brackets.

    Attributes:
        steps: of the pass that is described.
        ends: steps after which the text may change.
    """

    def __init__(self, steps: int, hires_steps: int | None) -> None:
        self.steps = steps if hires_steps is None else hires_steps
        self.ends = {self.steps}
        self._earlier, self._whole = (0, 0.0) if hires_steps is None else (steps, 1.0)
        self._outside: Nodes = []
        self._open: list[_Bracket] = []

    def read(self, text: str) -> Nodes | None:
        """The prompt as a tree; None when all of it is text."""
        for match in _PIECE.finditer(text):
            piece = match.group()
            if piece == "\\" or not self._take(piece):
                return None
        return self._outside if self._give_up() else None

    def _take(self, piece: str) -> bool:
        """Read one piece; False when no prompt can have it there."""
        if piece in "([":
            self._open.append(_Bracket(piece))
        elif piece in ")]":
            return self._close(piece)
        elif piece in ":|" and self._open:
            self._open[-1].separate(piece)
        else:
            self._add(piece)
            return piece != "|"
        return True

    def _add(self, node: Node) -> None:
        (self._open[-1].parts[-1] if self._open else self._outside).append(node)

    def _close(self, piece: str) -> bool:
        node = self._node(self._open[-1], piece) if self._open else None
        if node is None:
            fits = self._give_up()
            self._outside.append(piece)
            return fits
        self._open.pop()
        self._add(node)
        return True

    def _give_up(self) -> bool:
        """Open brackets that cannot be closed are text; False when one has a `|`, which is text nowhere."""
        brackets, self._open = self._open, []
        for bracket in brackets:
            self._outside.extend(bracket.literal())
        return not any("|" in bracket.separators for bracket in brackets)

    def _node(self, bracket: _Bracket, piece: str) -> Node | None:
        """The bracket as a node, closed by `piece`; None when they do not fit."""
        match bracket.opening + piece, bracket.separators:
            case ("()", "" | ":") | ("[]", ""):
                return _joined([*bracket.literal(), piece])
            case "[]", ":" | "::":
                return self._switch(bracket.parts)
            case "[]", separators if ":" not in separators:
                self.ends.update(range(1, self.steps))
                return _Alternation([_joined(part) for part in bracket.parts])
        return None

    def _switch(self, parts: list[Nodes]) -> _Switch | None:
        *texts, last = parts
        found = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
        if found is None:
            return None
        when = self._step(found[1])
        if when >= 1:
            self.ends.add(when)
        return _Switch(texts[0] if len(texts) == 2 else [], texts[-1], when)

    def _step(self, number: str) -> int:
        value = float(number)
        step = (value - self._whole) * self.steps if "." in number else value - self._earlier
        return int(max(0.0, min(step, self.steps)))
