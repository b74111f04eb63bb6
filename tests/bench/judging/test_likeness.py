"""Likeness of pictures whose difference is known."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from bench.judging.judge import Pixels
from bench.judging.likeness import likeness
from server.errors import ServerError
from tests.drawing import scene


def noised(picture: Pixels, deviation: float) -> Pixels:
    noise = np.random.default_rng(3).normal(0, deviation, picture.shape)
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def test_the_same_picture_is_the_same() -> None:
    (same,) = likeness([scene(64, 96)], [scene(64, 96)])
    assert same.psnr_db == 100
    assert same.ssim == 1


def test_decibels_are_those_of_the_noise_and_similarity_falls() -> None:
    picture = (scene(64, 96) // 2 + 64).astype(np.uint8)
    weak, strong = likeness([picture] * 2, [noised(picture, 4), noised(picture, 16)])
    # Rounding adds a twelfth to the variance.
    assert weak.psnr_db == pytest.approx(10 * np.log10(255**2 / (16 + 1 / 12)), abs=0.15)
    assert strong.psnr_db == pytest.approx(10 * np.log10(255**2 / (256 + 1 / 12)), abs=0.15)
    assert 1 > weak.ssim > strong.ssim > 0


def test_similarity_is_of_structure_and_not_of_brightness() -> None:
    picture = (scene(64, 64) // 2 + 40).astype(np.uint8)
    brighter, noisy = likeness([picture] * 2, [picture + np.uint8(10), noised(picture, 10)])
    assert brighter.psnr_db == pytest.approx(noisy.psnr_db, abs=0.3)
    assert brighter.ssim > 0.9 > noisy.ssim


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ServerError, match=r"\(64, 64\) and \(64, 96\)"):
        likeness([scene(64, 64)], [scene(64, 96)])


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("none", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ServerError, match=r"skimage.*aquatint\[bench\]"):
        likeness([], [])
