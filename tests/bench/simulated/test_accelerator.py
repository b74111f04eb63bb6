"""The models of devices keep to what they were derived from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from bench.simulated.accelerator import ACCELERATORS, DeviceCurve, FakeAccelerator
from bench.simulated.virtual_time import VirtualClock


@pytest.mark.parametrize("curve", ACCELERATORS.values(), ids=ACCELERATORS)
def test_more_rows_take_longer_and_less_each(curve: DeviceCurve) -> None:
    seconds = [curve.seconds(rows) for rows in range(1, 65)]
    assert all(fewer < more for fewer, more in pairwise(seconds))
    rates = [curve.tflops(rows) for rows in range(1, 65)]
    assert all(fewer < more for fewer, more in pairwise(rates))


def test_rates_are_those_that_the_models_were_made_from() -> None:
    endless = 10**9
    assert ACCELERATORS["h100"].tflops(2) == pytest.approx(140)
    assert ACCELERATORS["h100"].tflops(endless) == pytest.approx(550)
    assert ACCELERATORS["h100-fp16"].tflops(2) == pytest.approx(168)
    # Two rows of SDXL are the work of 16.8 rows.
    assert ACCELERATORS["h100-fp16"].tflops(16) < 292 < ACCELERATORS["h100-fp16"].tflops(17)
    assert ACCELERATORS["l4"].tflops(endless) == pytest.approx(71)


def test_a_curve_goes_through_both_its_calls() -> None:
    curve = DeviceCurve.through((2, 100), (10, 300))
    assert curve.tflops(2) == pytest.approx(100)
    assert curve.tflops(10) == pytest.approx(300)


def test_peak_is_the_rate_of_full_calls() -> None:
    curve = DeviceCurve(fixed_seconds=1.0, row_seconds=0.5)
    assert curve.alone(20) == pytest.approx(20 * 2.0)
    assert curve.peak(20, max_rows=8) == pytest.approx(4 / (20 * 5.0))


def test_a_call_moves_the_clock_on_and_is_counted() -> None:
    clock = VirtualClock(host=lambda: 0.0)
    device = FakeAccelerator(DeviceCurve(1.0, 0.5), clock, (4, 8, 8))
    latents = np.ones((6, 4, 8, 8), np.float32)
    assert device.denoise({"sample": latents}).shape == latents.shape
    assert clock() == device.busy_seconds == pytest.approx(4.0)
    device.denoise({"sample": latents[:2]})
    assert (device.calls, device.rows) == (2, 8)
    assert clock() == pytest.approx(6.0)
