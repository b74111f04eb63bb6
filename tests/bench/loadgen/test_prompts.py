"""Files of prompts, good and bad."""

from pathlib import Path

import pytest

from bench.loadgen.prompts import read_prompts, write_captions
from server.errors import ServerError


def test_without_a_file_they_are_the_held_out_captions() -> None:
    prompts = read_prompts(None)
    assert len(set(prompts)) == len(prompts) == 200


def test_one_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('a cat, asleep\n\n  a "dog"  \n')
    assert read_prompts(file) == ["a cat, asleep", 'a "dog"']


def test_the_column_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "captions.tsv"
    file.write_text('id\tcaption\n7\ta "quoted cat\n8\ta dog\n')
    assert read_prompts(file) == ['a "quoted cat', "a dog"]


def test_captions_that_were_written_are_read_again(tmp_path: Path) -> None:
    prompts = ['a "quoted cat', "a dog\ton two\nlines"]
    assert read_prompts(write_captions(tmp_path, prompts)) == ['a "quoted cat', "a dog on two lines"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"\n\n", "has no prompt"),
        ("latin.txt", b"caf\xe9", "cannot be read as text"),
        ("other.tsv", b"id\ttext\n1\ta cat\n", "one must be called 'caption'"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ServerError, match=words):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere")
