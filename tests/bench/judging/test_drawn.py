"""Pictures that wait in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.judging.drawn import Drawn
from server.image import encode_image


def test_pictures_come_in_order_and_as_often_as_they_are_wanted(tmp_path: Path) -> None:
    pictures = [np.full((8, 16, 3), i, np.uint8) for i in range(12)]
    drawn = Drawn(tmp_path / "drawn", (encode_image(picture, "png", "binary", {}) for picture in pictures))
    assert len(drawn) == 12
    for _ in range(2):
        assert all(np.array_equal(one, other) for one, other in zip(drawn, pictures, strict=True))
