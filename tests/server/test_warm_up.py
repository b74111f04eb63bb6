"""server.warm_up: the curves of sizes that were measured and of those that were not."""

from __future__ import annotations

import pytest

from server.warm_up import Curves

POINTS = ((2, 0.01), (16, 0.04))


def test_the_measured_size_has_the_curve_that_was_measured() -> None:
    curve = Curves(POINTS, (512, 512))((512, 512))
    assert [curve.seconds(rows) for rows in (2, 16)] == [0.01, 0.04]


@pytest.mark.parametrize(("size", "factor"), [((512, 768), 1.5), ((768, 768), 2.25), ((256, 256), 0.25)])
def test_other_sizes_begin_in_proportion_to_their_area(size: tuple[int, int], factor: float) -> None:
    curve = Curves(POINTS, (512, 512))(size)
    assert [curve.seconds(rows) for rows in (2, 16)] == pytest.approx([0.01 * factor, 0.04 * factor])


def test_a_size_keeps_its_curve_and_what_was_measured_of_it_is_no_other_ones() -> None:
    curves = Curves(POINTS, (512, 512))
    curves((768, 768)).observe(2, 0.05)
    assert curves((768, 768)) is curves((768, 768))
    assert curves((768, 768)).seconds(2) > 0.0225
    assert curves((512, 512)).seconds(2) == 0.01
    assert curves((1024, 512)).seconds(2) == pytest.approx(0.02)


def test_batch_sizes_and_a_cap_that_was_set_hold_for_every_size() -> None:
    curves = Curves(POINTS, (512, 512), batch_sizes=(2, 16), row_cap=4)
    for size in ((512, 512), (768, 768)):
        assert curves(size).padded(3) == 16
        assert curves(size).row_cap(16) == 4


def test_without_measurements_calls_take_no_time() -> None:
    assert Curves((), (512, 512))((768, 768)).seconds(16) == 0.0
