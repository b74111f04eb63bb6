"""Arguments of command lines: each function takes a text, and tells argparse what is allowed instead."""

from __future__ import annotations

import argparse

from engines.errors import BuildError
from engines.profiles import Bounds


def resolution(text: str) -> tuple[int, int]:
    """`512` or `768x512` (height x width) as (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no resolution; write 512, or 768x512 for height x width")
    return int(sides[0]), int(sides[-1])


def capability(text: str) -> tuple[int, int]:
    """`8.9` as (8, 9)."""
    numbers = text.split(".")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability; write major and minor, such as 8.9")
    return int(numbers[0]), int(numbers[1])


def bounds(text: str) -> Bounds:
    """`1:8:16` as the fewest, the usual and the most; `8` as all three."""
    numbers = text.split(":")
    if len(numbers) not in (1, 3) or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} are no bounds; write minimum:optimum:maximum, such as 1:8:16")
    try:
        return Bounds(*(int(number) for number in numbers * (3 // len(numbers))))
    except BuildError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def component_rows(text: str) -> tuple[str, Bounds]:
    """`1:8:16`, or `unet=1:8:16` for one component, as its name (empty for all) and the bounds."""
    name, _, numbers = text.rpartition("=")
    return name, bounds(numbers)


def level(text: str) -> int:
    """0 to 5."""
    if text not in "012345" or len(text) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no level; choose 0 (fastest build) to 5 (fastest plan)")
    return int(text)


def gigabytes(text: str) -> int:
    """`4.5` as bytes, in units of 2^30."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write gigabytes, such as 8")
    return int(size * 2**30)
