"""Intervals of what the judge found."""

from __future__ import annotations

import pytest

from bench.judging.scores import judged_measures, mean_interval, means, share_interval


def test_a_share_of_all_is_not_certain() -> None:
    """Wilson's interval of 10 of 10 is from 0.7225 to 1."""
    assert list(share_interval([1.0] * 10)) == pytest.approx([0.7225, 1], abs=1e-3)
    assert list(share_interval([0.0, 1.0] * 50)) == pytest.approx([0.4038, 0.5962], abs=1e-3)


def test_a_mean_is_as_certain_as_its_values_agree() -> None:
    assert mean_interval([3.0] * 4) == (3, 3)
    assert list(mean_interval([1.0, 3.0])) == pytest.approx([2 - 1.96, 2 + 1.96])


def test_figures_have_their_units() -> None:
    scores = [{"colour": 1.0, "rest_psnr_db": 30.0}, {"colour": 0.0, "rest_psnr_db": 34.0}]
    assert means(scores) == {"colour": 0.5, "rest_psnr_db": 32.0}
    colour, decibels = judged_measures("inpainting", scores)
    assert (colour.name, colour.value, colour.unit) == ("inpainting colour", 0.5, "")
    assert (decibels.name, decibels.value, decibels.unit) == ("inpainting rest_psnr_db", 32.0, "dB")
    assert decibels.low is not None
    assert decibels.low < 32
