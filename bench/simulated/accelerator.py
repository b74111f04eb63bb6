"""A fake accelerator: a UNet whose calls take the seconds of a model of a device, and compute nothing.

The models are for SD 2.1 at 512 x 512, whose UNet does 0.804 TFLOP for a row (convolutions, linear layers and
attention; a multiply-add counts as 2). They are not measurements. A call takes

    seconds(rows) = fixed_seconds + rows * row_seconds        (that is (rows + n0) * c with n0 = fixed / row, c = row)

where `row_seconds` is the work of a row at the rate of a saturated device, and `fixed_seconds` what is lost to
launches and to layers too small to fill the device. Both follow from public rates at two sizes:

h100: saturated, 550 TFLOP/s: MLPerf Inference SDXL on H100 reached 575 (v4.1, NVIDIA) and 636 (v5.1, TheStage AI), in
    FP8 with 16 to 64 rows; taken down a little since SD 2.1 has more convolutions. Two rows, 140 TFLOP/s: between 110
    to 122 (TensorRT 8.6 on the PCIe card, alexeigor/sd-benchmarks) and 168 (stable-fast README, 104.6 steps a second).
h100-fp16: the cautious model, from two figures of one library in fp16 (stable-fast README, H100): 168 TFLOP/s for
    two rows of SD 1.5, and 292 for two rows of SDXL at 1024 x 1024 (21.6 steps a second), each the work of 8.4 rows.
l4: saturated, 71 TFLOP/s: MLPerf Inference v5.1 SDXL, Dell with 4 L4. No public figure for two rows is known to us;
    the fixed seconds of the H100 are kept, since they change little with the device: AITemplate's A100
    (examples/05, SD 1.5, 50 steps: 1.283 s for 2 rows, 14.93 s for 32) has 7.5 ms where the H100 model has 8.6 ms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.simulated.virtual_time import VirtualClock
from server.step_curve import StepCurve

# Of the UNet of SD 2.1 at 512 x 512, and of SDXL at 1024 x 1024, for one row.
TFLOP_PER_ROW = 0.804
SDXL_TFLOP_PER_ROW = 6.761
# Of a guided image.
GUIDED_ROWS = 2


class Curve(ABC):
    """Seconds of a UNet call by its rows."""

    __slots__ = ()

    @abstractmethod
    def seconds(self, rows: int) -> float:
        """What a call of so many rows takes."""

    def alone(self, calls: int, rows: int = GUIDED_ROWS) -> float:
        """Seconds of an image of so many calls that has the device to itself; guided unless it takes other rows."""
        return calls * self.seconds(rows)

    def peak(self, calls: float, max_rows: int) -> float:
        """Guided images a second, of so many calls each, when every call has the best number of rows."""
        row_seconds = min(self.seconds(rows) / rows for rows in range(GUIDED_ROWS, max_rows + 1))
        return 1 / (calls * GUIDED_ROWS * row_seconds)


class MeasuredCurve(Curve):
    """Linear between measured calls, and in proportion beyond the largest, as the server takes it.

    Args:
        points: (rows, seconds), at least one.
        besides: seconds that every call takes besides, of the host.
    """

    __slots__ = ("_besides", "_curve")

    def __init__(self, points: Sequence[tuple[int, float]], besides: float = 0.0) -> None:
        self._curve = StepCurve(points)
        self._besides = besides

    def seconds(self, rows: int) -> float:
        return self._curve.seconds(rows) + self._besides


@dataclass(frozen=True, slots=True)
class DeviceCurve(Curve):
    """A straight line; see the module for where the values come from."""

    fixed_seconds: float
    row_seconds: float

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> DeviceCurve:
        """The curve through two calls, each as (rows, TFLOP/s); infinite rows for the rate of a saturated device."""
        (few, slow), (many, fast) = small, large
        # TFLOP/s = rows * F / (fixed + rows * row), so rows * (F / rate - row) = fixed at both sizes.
        share = few / many
        row = TFLOP_PER_ROW * (1 / fast - share / slow) / (1 - share)
        return cls(few * (TFLOP_PER_ROW / slow - row), row)

    def seconds(self, rows: int) -> float:
        return self.fixed_seconds + rows * self.row_seconds

    def tflops(self, rows: int) -> float:
        """The rate of such a call, in TFLOP/s."""
        return rows * TFLOP_PER_ROW / self.seconds(rows)


_H100 = DeviceCurve.through((GUIDED_ROWS, 140), (float("inf"), 550))
ACCELERATORS: dict[str, DeviceCurve] = {
    "h100": _H100,
    "h100-fp16": DeviceCurve.through((GUIDED_ROWS, 168), (GUIDED_ROWS * SDXL_TFLOP_PER_ROW / TFLOP_PER_ROW, 292)),
    "l4": DeviceCurve(_H100.fixed_seconds, TFLOP_PER_ROW / 71),
}


class FakeAccelerator:
    """What a denoising loop takes for a pipeline: its calls move the clock on and give the latents back.

    Args:
        curve: how long a call takes.
        clock: what it moves on.
        shape: (channels, height, width) of all latents.
    """

    extra_channels = 0
    labelled = False

    def __init__(self, curve: Curve, clock: VirtualClock, shape: tuple[int, int, int]) -> None:
        self.curve = curve
        self.calls = 0
        self.rows = 0
        self.busy_seconds = 0.0
        self._clock = clock
        self._shape = shape

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width), the same for every picture."""
        return self._shape

    def denoise(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """One UNet call: (rows, c, h, w)."""
        sample: npt.NDArray[np.float32] = feeds["sample"]
        seconds = self.curve.seconds(len(sample))
        self.work(seconds)
        self.calls += 1
        self.rows += len(sample)
        return sample

    def work(self, seconds: float) -> None:
        """Be busy with something else than the UNet."""
        self._clock.skip(seconds)
        self.busy_seconds += seconds
