"""A peer in a process of its own: it may need another interpreter, may crash, and gives its memory back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.contestant import Drawn, Load, in_turn
from bench.peers.order import MissingPeerError, Order, Setup
from bench.reporting.results import ROOT
from bench.traffic.asking import Outcome
from bench.traffic.mix import Asked
from engines.errors import EngineError


class PeerError(EngineError):
    """A peer that failed: says what it said, or how its process ended."""


class PeerProcess:
    """A peer that answers; see `opened`.

    Args:
        name: as `worker.MODULES` has it.
        limit: seconds that one answer may take.
        log: where its standard error goes.
    """

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path, limit: float) -> None:
        self.name = name
        self.open_seconds = 0.0
        self._process = process
        self._log = log
        self._limit = limit

    def open(self, setup: Setup) -> None:
        """Have it load.

        Raises:
            MissingPeerError: something that it needs is not here.
            PeerError: it failed.
        """
        self.open_seconds = float(self._asked(asdict(setup))["seconds"])

    def draw(self, order: Order, *, keep: bool = False) -> Drawn:
        """Draw an order; seconds are the peer's own, from the call to pixels in memory.

        Args:
            keep: whether pixels are wanted.

        Raises:
            PeerError: it failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pixels"
            answer = self._asked({"order": asdict(order), "file": str(file) if keep else ""})
            if not keep:
                return Drawn(float(answer["seconds"]))
            pixels = np.frombuffer(file.read_bytes(), np.uint8)
        shape = len(order.prompts), order.height, order.width, 3
        if pixels.size != np.prod(shape):
            raise PeerError(f"{self.name} gave {pixels.size} bytes for pictures of {shape}")
        return Drawn(float(answer["seconds"]), pixels.reshape(shape))

    def serve(self, load: Load) -> list[Outcome]:
        """A load, one request after the other as they come: as whoever puts such a pipeline behind a lock serves it.

        Raises:
            PeerError: it failed.
        """
        return asyncio.run(self._serve(load))

    async def _serve(self, load: Load) -> list[Outcome]:
        # First come, first served.
        lock = asyncio.Lock()

        async def answer(asked: Asked) -> None:
            async with lock:
                await asyncio.to_thread(self.draw, load.orders[asked.number])

        return await load.sent(in_turn(answer))

    def _asked(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self._limit, _kill, [self._process])
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise PeerError(f"the process of {self.name} {self._ending()}; see {self._log}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise PeerError(f"{self.name} said {line[:80]!r}, which is no answer; see {self._log}") from error
        if "missing" in answer:
            raise MissingPeerError(answer["missing"])
        if "error" in answer:
            raise PeerError(f"{self.name} failed: {answer['error']}; see {self._log}")
        return answer

    def _ending(self) -> str:
        code = self._process.wait()
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


@contextlib.contextmanager
def opened(name: str, python: str, setup: Setup, log: Path, limit: float) -> Iterator[PeerProcess]:
    """A peer, loaded, until the block ends.

    Args:
        python: the interpreter that has its packages.

    Raises:
        MissingPeerError: that is not there, or something that the peer needs.
        PeerError: it failed while it loaded.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # What an earlier run compiled would make this one's compiling look short.
        compiled = stack.enter_context(tempfile.TemporaryDirectory(prefix="aquatint-peer-", ignore_cleanup_errors=True))
        environment = {**os.environ, "OMP_NUM_THREADS": str(setup.threads), "TORCHINDUCTOR_CACHE_DIR": compiled}
        errors = stack.enter_context(log.open("a", encoding="utf-8"))
        try:
            process = subprocess.Popen(
                [python, "-m", "bench.peers.worker", name],
                cwd=ROOT,
                env={**environment, "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Of its own, so that it ends together with what it has started, such as compilers.
                process_group=0,
            )
        except OSError as error:
            raise MissingPeerError(
                f"{python} cannot be started ({error.strerror}); name an interpreter that is there by "
                f"--peer-python {name}=PATH"
            ) from error
        stack.callback(_end, process)
        peer = PeerProcess(name, process, log, limit)
        peer.open(setup)
        yield peer


def _kill(process: subprocess.Popen[str]) -> None:
    """With all of its group, who might keep its pipes open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[str]) -> None:
    _kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        # What was written to a process that had gone is written again when the pipe is closed.
        with contextlib.suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()
