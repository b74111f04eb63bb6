"""Prompts of files, and of none."""

from pathlib import Path

import pytest

from bench.loadgen.prompts import read_prompts, write_captions
from server.errors import ServerError


def test_without_a_file_they_are_the_held_out_captions() -> None:
    prompts = read_prompts(None)
    assert len(set(prompts)) == len(prompts) == 200


def test_captions_that_were_written_are_read_again(tmp_path: Path) -> None:
    prompts = ['a "quoted cat', "a dog\ton two\nlines", '"all of it"']
    assert read_prompts(write_captions(tmp_path, prompts)) == ['a "quoted cat', "a dog on two lines", '"all of it"']


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"^--prompts .*nowhere cannot be read"):
        read_prompts(tmp_path / "nowhere")
