"""Captions and pictures that a user brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.judging.captions import picture_files, read_captions, read_pictures
from server.errors import ServerError


def test_captions_are_lines(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a cat\n\n  two dogs \n", encoding="utf-8")
    assert read_captions(tmp_path / "captions.txt") == ["a cat", "two dogs"]


def test_a_table_has_them_in_a_column(tmp_path: Path) -> None:
    (tmp_path / "captions.tsv").write_text("id\tcaption\theight\n7\ta cat\t64\n8\ttwo dogs\t64\n", encoding="utf-8")
    assert read_captions(tmp_path / "captions.tsv") == ["a cat", "two dogs"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", None, "cannot be read"),
        ("empty.txt", "\n \n", "has no captions"),
        ("other.tsv", "id\ttext\n1\ta cat\n", "columns id, text and not caption"),
        ("empty.tsv", "id\tcaption\n", "has no captions"),
    ],
)
def test_files_without_captions_are_refused(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ServerError, match=said):
        read_captions(tmp_path / name)


def test_pictures_are_found_in_folders_and_read_as_rgb(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.new("L", (6, 4), 9).save(tmp_path / "b.png")
    Image.new("RGBA", (6, 4), (1, 2, 3, 255)).save(tmp_path / "more" / "a.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    files = picture_files(tmp_path)
    assert [path.name for path in files] == ["b.png", "a.PNG"]
    grey, colours = read_pictures(files)
    assert grey.shape == colours.shape == (4, 6, 3)
    assert np.unique(grey).tolist() == [9]
    assert colours[0, 0].tolist() == [1, 2, 3]


def test_too_few_pictures_and_broken_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="has 0 pictures"):
        picture_files(tmp_path / "none")
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ServerError, match=r"a\.png is no picture"):
        list(read_pictures([tmp_path / "a.png"]))
