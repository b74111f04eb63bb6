"""Values of a YAML file, each with where it stands, so that a wrong one is told by its path."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from bench.traffic.spread import Between, Numbers, Spread, Weighted
from server.errors import ServerError

Item = TypeVar("Item")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a file, and where it stands; what reads it raises a ServerError where it may not be."""

    file: Path
    path: str
    value: Any

    def wrong(self, allowed: str) -> ServerError:
        where = f"{self.file}: {self.path}" if self.path else f"{self.file}"
        return ServerError(f"{where} is {repr(self.value)[:80]}: give {allowed}")

    def keys(self, known: Mapping[str, Any] | tuple[str, ...]) -> dict[str, Node]:
        """What a mapping has under known names."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"a mapping with some of {', '.join(known)}")
        found = {str(name): self.under(f".{name}" if self.path else str(name), v) for name, v in self.value.items()}
        if unknown := [name for name in found if name not in known]:
            key = found[unknown[0]].path
            raise ServerError(f"{self.file}: {key} is no key of a workload; give {', '.join(known)}")
        return found

    def under(self, suffix: str, value: Any) -> Node:
        return Node(self.file, self.path + suffix, value)

    def items(self) -> list[Node]:
        if not isinstance(self.value, list) or not self.value:
            raise self.wrong("a list with at least one value")
        return [self.under(f"[{i}]", value) for i, value in enumerate(self.value)]


Reader: TypeAlias = Callable[[Node], Any]


def spread_of(node: Node, item: Callable[[Node], Item]) -> Spread[Item]:
    """One value, a list of values, or a mapping from values to weights, each read by `item`."""
    if isinstance(node.value, dict) and node.value:
        weights = {name: above_zero(node.under(f".{name}", weight)) for name, weight in node.value.items()}
        values = tuple(item(node.under(f".{name}", name)) for name in node.value)
        return Weighted(values, tuple(weights.values()))
    if isinstance(node.value, list):
        return tuple(item(one) for one in node.items())
    return (item(node),)


def numbers_of(node: Node, item: Callable[[Node], Number]) -> Numbers[Number]:
    """The same, or a range."""
    if not (isinstance(node.value, dict) and {"from", "to"} & set(node.value)):
        return spread_of(node, item)
    ends = node.keys(("from", "to"))
    if len(ends) < 2:
        raise node.wrong("both from and to")
    low, high = item(ends["from"]), item(ends["to"])
    if low > high:
        raise node.wrong("a range whose from is not above its to")
    return Between(low, high)


def whole(low: int, high: int) -> Callable[[Node], int]:
    """Reads an integer."""

    def read(node: Node) -> int:
        if type(node.value) is not int or not low <= node.value <= high:
            raise node.wrong(f"an integer from {low} to {high}")
        return node.value

    return read


def part(node: Node) -> float:
    """A share."""
    return real(0, 1)(node)


def real(low: float, high: float) -> Callable[[Node], float]:
    """Reads a number."""

    def read(node: Node) -> float:
        if type(node.value) not in (int, float) or not low <= node.value <= high:
            raise node.wrong(f"a number from {low:g} to {high:g}")
        return float(node.value)

    return read


def above_zero(node: Node) -> float:
    """A number that has an end."""
    if type(node.value) not in (int, float) or not 0 < node.value < math.inf:
        raise node.wrong("a number above 0")
    return float(node.value)


def text(node: Node) -> str:
    """Of one character or more."""
    if not isinstance(node.value, str) or not node.value:
        raise node.wrong("a text")
    return node.value


def one_of(choices: tuple[Any, ...]) -> Reader:
    """Reads one of some names."""

    def read(node: Node) -> Any:
        if node.value not in choices:
            raise node.wrong(f"one of {', '.join(choices)}")
        return node.value

    return read


def one_or_more(node: Node) -> list[Node]:
    """The values of a list, or the only one."""
    return node.items() if isinstance(node.value, list) else [node]
