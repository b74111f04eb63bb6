"""The process of a peer: reads orders as lines of JSON, draws them, and says how long it took.

Run by any interpreter that has the peer's packages: `python -m bench.peers.worker NAME` in the repository. Whatever
libraries print goes to standard error; standard output holds one line of JSON for each that came.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from bench.peers.order import MissingPeerError, Order, Setup

Result = TypeVar("Result")


class Drawer(Protocol):
    """A peer, loaded."""

    def draw(self, order: Order) -> bytes:
        """The pictures one after the other: rows of RGB, a byte each."""


# A module of this package whose `open_drawer(setup)` loads the peer, and the precision that it is told.
MODULES = {
    "diffusers_fp32": "bench.peers.diffusers_drawer",
    "diffusers_bf16": "bench.peers.diffusers_drawer",
    "compiled_bf16": "bench.peers.compiled_drawer",
    "openvino_genai": "bench.peers.genai_drawer",
    "stable_diffusion_cpp": "bench.peers.cpp_drawer",
}


def serve(opened: Callable[[Setup], Drawer], lines: TextIO, told: TextIO) -> None:
    """Open the peer as the first line says, then draw an order per line, until there are no more."""
    if not (first := next(lines, "")):
        return
    setup = Setup(**json.loads(first))
    answer, drawer = _answer(partial(opened, setup))
    _tell(told, answer)
    if drawer is None:
        return
    for line in lines:
        asked = json.loads(line)
        answer, pictures = _answer(partial(drawer.draw, Order.from_json(asked["order"])))
        if asked["file"] and pictures is not None:
            Path(asked["file"]).write_bytes(pictures)
        _tell(told, answer)


def _answer(call: Callable[[], Result]) -> tuple[dict[str, Any], Result | None]:
    started = time.perf_counter()
    try:
        result = call()
    except MissingPeerError as error:
        return {"missing": str(error)}, None
    except Exception as error:  # whatever a peer's libraries raise must reach whoever asked, in words
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}, None
    return {"seconds": time.perf_counter() - started}, result


def _tell(told: TextIO, answer: dict[str, Any]) -> None:
    told.write(json.dumps(answer) + "\n")
    told.flush()


def needed(package: str, remedy: str) -> Any:
    """A module that a peer needs.

    Raises:
        MissingPeerError: it is not installed; says what to do.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPeerError(f"{package} cannot be imported ({error}): {remedy}") from error


def main(name: str) -> None:
    """Keep standard output for answers alone, and serve."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(importlib.import_module(MODULES[name]).open_drawer, sys.stdin, told)


if __name__ == "__main__":
    main(sys.argv[1])
