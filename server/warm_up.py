"""The first calls of every component, made before requests come; they also tell how long calls take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.conditioning import Text
from server.config import ServerConfig
from server.pipeline import Pipeline
from server.step_curve import StepCurve

# Timed calls of each number of rows; the quickest counts, since whatever else happens only makes them slower.
REPEATS = 2


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the first calls took.

    Attributes:
        step_seconds: (rows, seconds) of UNet calls at the first resolution.
        decode_seconds: of decoding one image.
    """

    step_seconds: tuple[tuple[int, float], ...]
    decode_seconds: float


def warm_up(pipeline: Pipeline, config: ServerConfig) -> WarmUp:
    """Run every component once or more at the checkpoint's first resolution."""
    height, width = pipeline.spec.resolutions[0]
    shape = pipeline.latent_shape(height, width)
    text = Text("", "none", 0)
    states = pipeline.embed([text])[text].states
    points = config.step_seconds
    sizes = [2] if points else _sizes(config.max_rows, config.batch_sizes)
    measured = [(rows, _call_seconds(pipeline, rows, shape, states)) for rows in sizes]
    latent = np.zeros((1, *shape), np.float32)
    pipeline.decode(latent)
    started = time.perf_counter()
    pipeline.decode(latent)
    return WarmUp(points or tuple(measured), time.perf_counter() - started)


def _sizes(max_rows: int, batch_sizes: Sequence[int]) -> list[int]:
    """The engine's own, or powers of two and the largest."""
    if batch_sizes:
        return sorted(size for size in batch_sizes if size <= max_rows)
    return sorted({2**i for i in range(1, max_rows.bit_length()) if 2**i <= max_rows} | {max_rows})


def _call_seconds(
    pipeline: Pipeline, rows: int, shape: tuple[int, ...], states: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> float:
    feeds = {
        "sample": np.zeros((rows, *shape), np.float32),
        "timestep": np.full(rows, 500, np.float32),
        "encoder_hidden_states": np.broadcast_to(states, (rows, *states.shape)).copy(),
    }
    found = []
    pipeline.denoise(feeds)
    for _ in range(REPEATS):
        started = time.perf_counter()
        pipeline.denoise(feeds)
        found.append(time.perf_counter() - started)
    return min(found)


class Curves:
    """A step-time curve for every size in pixels, refined by every call that is made.

    Sizes that were not measured begin with the first one's, in proportion to their area.

    Args:
        points: of the size `measured`.
        batch_sizes: rows that the engine takes; empty means any.
        row_cap: that calls are filled up to; 0 leaves it to the curves.
    """

    def __init__(
        self,
        points: Sequence[tuple[int, float]],
        measured: tuple[int, int],
        batch_sizes: Sequence[int] = (),
        row_cap: int = 0,
    ) -> None:
        self._points = tuple(points)
        self._measured = measured
        self._batch_sizes = tuple(batch_sizes)
        self._row_cap = row_cap
        self._curves: dict[tuple[int, int], StepCurve] = {}

    def __call__(self, size: tuple[int, int]) -> StepCurve:
        """The curve of (height, width) in pixels."""
        if size not in self._curves:
            area = size[0] * size[1] / (self._measured[0] * self._measured[1])
            points = [(rows, seconds * area) for rows, seconds in self._points]
            self._curves[size] = StepCurve(points, self._batch_sizes, self._row_cap)
        return self._curves[size]
