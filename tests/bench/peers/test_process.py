"""A peer in a process of its own: the real protocol, with a peer that only paints."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.peers.contestant import Load
from bench.peers.order import MissingPeerError, Order, Setup
from bench.peers.process import PeerError, opened
from bench.reporting.results import ROOT

ORDER = Order(("a", "b"), (1, 2), steps=1, guidance=2.0, height=2, width=1)
SETUP = Setup("none", "fp32", "cpu", threads=1, work="", height=2, width=1, guidance=2.0)
# Paints each picture in its seed, and says so on standard output as libraries do; dies of 13, gives too little for 7.
PAINTER = """
import os, sys
sys.path.insert(0, {root!r})
from bench.peers import worker

class Painter:
    def draw(self, order):
        print("painting")
        if 13 in order.seeds:
            os._exit(5)
        size = 1 if 7 in order.seeds else 3 * order.height * order.width
        return b"".join(bytes([seed]) * size for seed in order.seeds)

class Module:
    open_drawer = staticmethod(lambda setup: Painter())

sys.modules["painter"] = Module
worker.MODULES["painter"] = "painter"
worker.main("painter")
"""


def interpreter(folder: Path, program: str) -> str:
    """What stands in for an interpreter: whatever it is told to run, it runs a program."""
    source, script = folder / "program.py", folder / "python"
    source.write_text(program)
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{source}"\n')
    script.chmod(0o755)
    return str(script)


def test_a_peer_draws_and_serves_in_turn(tmp_path: Path) -> None:
    python = interpreter(tmp_path, PAINTER.format(root=str(ROOT)))
    with opened("painter", python, SETUP, tmp_path / "log", limit=30) as peer:
        drawn = peer.draw(ORDER, keep=True)
        assert drawn.pixels is not None
        assert drawn.pixels.tolist() == [[[[1] * 3]] * 2, [[[2] * 3]] * 2]
        assert peer.draw(ORDER).pixels is None
        outcomes = peer.serve(Load(ORDER.singles() * 3, concurrency=4))
        assert [outcome.status for outcome in outcomes] == ["ok"] * 6
        ends = [outcome.ended for outcome in outcomes]
        assert ends == sorted(ends)
        with pytest.raises(PeerError, match="painter gave 2 bytes"):
            peer.draw(replace(ORDER, seeds=(7, 7)), keep=True)
        with pytest.raises(PeerError, match=r"the process of painter ended with code 5; see .*log"):
            peer.draw(replace(ORDER, seeds=(1, 13)))
        failed = peer.serve(Load(ORDER.singles(), concurrency=1))
        assert [outcome.status for outcome in failed] == ["error"] * 2
    assert set((tmp_path / "log").read_text().splitlines()) == {"painting"}


def test_a_peer_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(PeerError, match="was ended by signal 9"), opened("slow", python, SETUP, tmp_path / "log", 0.2):
        pass


def runs(process: int) -> bool:
    """Not if it has ended and nobody has asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_peer_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """Here a process that has the peer's pipes, so that nobody would ever be told that the peer is gone."""
    child = tmp_path / "child"
    program = f"""
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(child)!r}).write_text(str(child.pid))
print('{{"seconds": 0.5}}', flush=True)
child.wait()
"""
    with opened("parent", interpreter(tmp_path, program), SETUP, tmp_path / "log", limit=30) as peer:
        assert peer.open_seconds == 0.5
        peer._limit = 0.1
        with pytest.raises(PeerError, match="was ended by signal 9"):
            peer.draw(ORDER)
    while runs(int(child.read_text())):
        time.sleep(0.01)


def test_what_is_no_answer_is_told(tmp_path: Path) -> None:
    python = interpreter(tmp_path, 'print("Loading...", flush=True); input(); input()')
    with (
        pytest.raises(PeerError, match=r"loud said 'Loading...\\n', which is no answer; see .*log"),
        opened("loud", python, SETUP, tmp_path / "log", 30),
    ):
        pass


def test_an_interpreter_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(MissingPeerError, match=r"cannot be started .*--peer-python x=PATH"),
        opened("x", str(tmp_path / "none"), SETUP, tmp_path / "log", 1),
    ):
        pass


@pytest.mark.parametrize("name", ["openvino_genai", "stable_diffusion_cpp"])
def test_a_peer_of_the_cpu_is_not_compared_with_a_gpu(tmp_path: Path, name: str) -> None:
    setup = replace(SETUP, device="cuda")
    with (
        pytest.raises(MissingPeerError, match="draws on the CPU here, and ours on a GPU"),
        opened(name, sys.executable, setup, tmp_path / "log", 60),
    ):
        pass


def test_an_architecture_that_is_not_known_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    setup = replace(SETUP, checkpoint=str(tiny_checkpoint))
    with (
        pytest.raises(MissingPeerError, match=r"this one's are \[32, 32\]: give a checkpoint of full size"),
        opened("stable_diffusion_cpp", sys.executable, setup, tmp_path / "log", 60),
    ):
        pass
