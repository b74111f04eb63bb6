"""server.warm_up: the curves of sizes that were measured and of those that were not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.component import PipelineSpec
from engines.runner import FakeRunner
from server import warm_up
from server.config import ServerConfig
from server.job import Plot
from server.pipeline import open_pipeline
from server.warm_up import Curves, first_call, rehearse

POINTS = ((2, 0.01), (16, 0.04))
MEASURED = {"one": (POINTS, (512, 512)), "other": (((2, 0.5),), (768, 768))}


def plot(height: int, width: int, checkpoint: str = "one") -> Plot:
    return Plot(checkpoint, height, width)


def test_the_measured_size_has_the_curve_that_was_measured() -> None:
    curve = Curves(MEASURED)(plot(512, 512))
    assert [curve.seconds(rows) for rows in (2, 16)] == [0.01, 0.04]


@pytest.mark.parametrize(("size", "factor"), [((512, 768), 1.5), ((768, 768), 2.25), ((256, 256), 0.25)])
def test_other_sizes_begin_in_proportion_to_their_area(size: tuple[int, int], factor: float) -> None:
    curve = Curves(MEASURED)(plot(*size))
    assert [curve.seconds(rows) for rows in (2, 16)] == pytest.approx([0.01 * factor, 0.04 * factor])


def test_every_checkpoint_has_curves_of_its_own() -> None:
    curves = Curves(MEASURED)
    assert curves(plot(768, 768, "other")).seconds(2) == 0.5
    curves(plot(768, 768, "other")).observe(2, 5.0)
    assert curves(plot(768, 768)).seconds(2) == pytest.approx(0.0225)


def test_a_size_keeps_its_curve_and_what_was_measured_of_it_is_no_other_ones() -> None:
    curves = Curves(MEASURED)
    curves(plot(768, 768)).observe(2, 0.05)
    assert curves(plot(768, 768)) is curves(plot(768, 768))
    assert curves(plot(768, 768)).seconds(2) > 0.0225
    assert curves(plot(512, 512)).seconds(2) == 0.01
    assert curves(plot(1024, 512)).seconds(2) == pytest.approx(0.02)


def test_batch_sizes_and_a_cap_that_was_set_hold_for_every_size() -> None:
    curves = Curves(MEASURED, batch_sizes=(2, 16), row_cap=4)
    for size in (plot(512, 512), plot(768, 768), plot(768, 768, "other")):
        assert curves(size).padded(3) == 16
        assert curves(size).row_cap(16) == 4


def test_without_measurements_calls_take_no_time() -> None:
    assert Curves({"one": ((), (512, 512))})(plot(768, 768)).seconds(16) == 0.0


def clock(monkeypatch: pytest.MonkeyPatch, runner: FakeRunner, seconds: float) -> None:
    """Time passes in calls of `runner` only, the same in each."""
    monkeypatch.setattr("time.perf_counter", lambda: len(runner.calls) * seconds)


@pytest.mark.parametrize(("seconds", "calls"), [(0.5, 3), (3.0, 1)])
def test_a_long_first_call_is_not_made_again(
    fake_export: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, calls: int
) -> None:
    spec = PipelineSpec.read(fake_export)
    runner = FakeRunner(spec.component("unet"))
    clock(monkeypatch, runner, seconds)
    assert first_call(runner, spec, rows=2) == seconds
    assert runner.calls == [2] * calls


@pytest.mark.parametrize(("seconds", "rows"), [(2**-10, [2, 4, 8, 16]), (1.0, [2, 4]), (60.0, [2])])
def test_sizes_are_measured_as_long_as_there_is_time(
    fake_export: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, rows: list[int]
) -> None:
    config = ServerConfig(fake_export, provider="fake")
    pipeline = open_pipeline(config)
    unet = pipeline.runners["unet"]
    assert isinstance(unet, FakeRunner)
    clock(monkeypatch, unet, seconds)
    assert warm_up.warm_up(pipeline, config).step_seconds == tuple((size, seconds) for size in rows)


@pytest.mark.parametrize(("provider", "sizes"), [("openvino", [(8, 8)]), ("tensorrt", [(16, 16)] * 3)])
def test_a_cpu_rehearses_in_small(
    fake_export: Path, monkeypatch: pytest.MonkeyPatch, provider: str, sizes: list[tuple[int, int]]
) -> None:
    spec = replace(PipelineSpec.read(fake_export), resolutions=((128, 128),))
    runner = FakeRunner(spec.component("vae_decoder"))
    seen: list[tuple[int, int]] = []

    def infer(feeds: Any) -> dict[str, Any]:
        seen.append(feeds["latent"].shape[2:])
        return {}

    monkeypatch.setattr(runner, "provider", provider)
    monkeypatch.setattr(runner, "infer", infer)
    rehearse(runner, spec)
    assert seen == sizes
