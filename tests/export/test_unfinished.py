"""Folders of unfinished work: gone in the end, and swept once nobody works in them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.unfinished import PREFIX, locked, unfinished

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys, time
from pathlib import Path
from export.unfinished import unfinished
with unfinished(Path(sys.argv[1])) as made:
    (made / "unet.onnx").write_bytes(b"half")
    print(made.name, flush=True)
    time.sleep(60)
"""


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def test_what_was_moved_out_stays_and_the_rest_goes(tmp_path: Path) -> None:
    place = tmp_path / "new" / "place"
    with unfinished(place) as made:
        (made / "whole").touch()
        (made / "half").touch()
        (made / "whole").rename(place / "whole")
    assert names(place) == {"whole"}


def test_a_place_that_was_made_for_nothing_goes_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "new"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path):
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


def test_what_a_killed_process_left_is_swept_and_what_another_works_in_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout is not None
            theirs = worker.stdout.readline().strip()
            with unfinished(tmp_path) as ours:
                assert names(tmp_path) == {theirs, ours.name}
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait(timeout=10)
        finally:
            worker.kill()
    assert names(tmp_path) == {theirs}
    with unfinished(tmp_path) as ours:
        assert names(tmp_path) == {ours.name}


def test_others_of_another_name_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}sd15-1").mkdir()
    with unfinished(tmp_path, "sd21-"):
        pass
    assert names(tmp_path) == {f"{PREFIX}sd15-1"}


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    with locked(tmp_path) as first, locked(tmp_path, wait=False) as second:
        assert (first, second) == (True, False)
    with locked(tmp_path, wait=False) as third:
        assert third
