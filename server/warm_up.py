"""The first calls of every component, made before requests come; they also tell how long calls take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engines.catalog import SIDE_MULTIPLE
from engines.component import Arrays, PipelineSpec
from engines.providers import serves_any_size
from engines.runner import Runner
from server.config import ServerConfig
from server.job import Plot
from server.pipeline import Pipeline
from server.step_curve import StepCurve

# Timed calls of each number of rows; the quickest counts, since whatever else happens only makes them slower.
REPEATS = 2
# A first call that takes so long is measure enough, and larger calls are not made when those before took so long: their
# seconds are predicted in proportion, and corrected by every call that serves somebody.
LONG_SECONDS = 2.0
BUDGET_SECONDS = 5.0


# (rows, seconds) of UNet calls.
Points: TypeAlias = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the first calls took.

    Attributes:
        step_seconds: (rows, seconds) of UNet calls at the first resolution; empty where the UNet is another model.
        decode_seconds: of decoding one image; 0 where the VAE decoder is another model.
    """

    step_seconds: tuple[tuple[int, float], ...]
    decode_seconds: float


def warm_up(pipeline: Pipeline, config: ServerConfig) -> WarmUp:
    """Run the UNet at the first resolution with as many numbers of rows as there is time for, and others once.

    Only those of this process: Triton lets models call one another only when all are loaded. Others warm up by
    themselves, and their curves are learned from the first calls on.
    """
    here = {name: runner for name, runner in pipeline.runners.items() if runner.provider != "triton"}
    decoder, unet = here.get("vae_decoder"), here.get("unet")
    for name in ("text_encoder", "vae_encoder", "depth_estimator"):
        if name in here:
            first_call(here[name], pipeline.spec)
    decode_seconds = first_call(decoder, pipeline.spec) if decoder else 0.0
    points = config.step_seconds
    if unet is not None:
        sizes = [2] if points else _sizes(config.max_rows, config.batch_sizes)
        measured = _curve(unet, pipeline.spec, sizes)
        points = points or measured
    return WarmUp(points, decode_seconds)


def _curve(unet: Runner, spec: PipelineSpec, sizes: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """(rows, seconds) of the smaller sizes, as many as there is time for."""
    measured: list[tuple[int, float]] = []
    end = time.perf_counter() + BUDGET_SECONDS
    for rows in sizes:
        if not measured or time.perf_counter() < end:
            measured.append((rows, first_call(unet, spec, rows)))
    return tuple(measured)


def rehearse(runner: Runner, spec: PipelineSpec) -> None:
    """Make a component's first call where nobody asks how long it takes.

    Providers of a CPU prepare the weights in it, whatever the size; those of a GPU the size that will come.
    """
    if serves_any_size(runner.provider):
        smallest = {"rows": 1, "height": SIDE_MULTIPLE, "width": SIDE_MULTIPLE, "tokens": spec.context_length}
        runner.infer(runner.component.zeros(smallest))
    else:
        first_call(runner, spec)


def first_call(runner: Runner, spec: PipelineSpec, rows: int = 1) -> float:
    """Run a component at the first resolution, and give the seconds of a call after the first, or of a long first."""
    height, width = spec.resolutions[0]
    sizes = {
        "rows": rows,
        "height": height // spec.downscale,
        "width": width // spec.downscale,
        "tokens": spec.context_length,
    }
    feeds = runner.component.zeros(sizes)
    first = _seconds(runner, feeds)
    return first if first > LONG_SECONDS else min(_seconds(runner, feeds) for _ in range(REPEATS))


def _seconds(runner: Runner, feeds: Arrays) -> float:
    started = time.perf_counter()
    runner.infer(feeds)
    return time.perf_counter() - started


def _sizes(max_rows: int, batch_sizes: Sequence[int]) -> list[int]:
    """The engine's own, or powers of two and the largest."""
    if batch_sizes:
        return sorted(size for size in batch_sizes if size <= max_rows)
    return sorted({2**i for i in range(1, max_rows.bit_length()) if 2**i <= max_rows} | {max_rows})


class Curves:
    """A step-time curve for every checkpoint and size in pixels, refined by every call that is made.

    Sizes that were not measured begin with the first one's, in proportion to their area.

    Args:
        points: of each checkpoint, with the size at which they were measured.
        batch_sizes: rows that the engine takes; empty means any.
        row_cap: that calls are filled up to; 0 leaves it to the curves.
    """

    def __init__(
        self,
        points: Mapping[str, tuple[Points, tuple[int, int]]],
        batch_sizes: Sequence[int] = (),
        row_cap: int = 0,
    ) -> None:
        self._points = points
        self._batch_sizes = tuple(batch_sizes)
        self._row_cap = row_cap
        self._curves: dict[Plot, StepCurve] = {}

    def __call__(self, plot: Plot) -> StepCurve:
        """The curve of a checkpoint at a size in pixels."""
        if plot not in self._curves:
            points, measured = self._points[plot.checkpoint]
            area = plot.height * plot.width / (measured[0] * measured[1])
            scaled = [(rows, seconds * area) for rows, seconds in points]
            self._curves[plot] = StepCurve(scaled, self._batch_sizes, self._row_cap)
        return self._curves[plot]
