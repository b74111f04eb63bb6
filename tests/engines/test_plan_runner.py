"""Plans as a component: one for each resolution, chosen by what is fed; what opens them is a stand-in."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import plan_runner
from engines.component import Component, PipelineSpec
from engines.errors import FeedError, PlanError
from engines.manifest import Machine
from engines.plan_runner import PlanRunner
from engines.profiles import Rows, component_profile, depends_on_resolution, latent_sides
from engines.providers import DEFAULTS, Settings
from engines.runner import FakeRunner, open_plans


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, fake_export: Path) -> list[tuple[str, str]]:
    """Which plans were opened by which provider, on a machine with TensorRT where every plan takes 2 to 4 rows."""
    spec = PipelineSpec.read(fake_export)
    found: list[tuple[str, str]] = []

    def find(folder: Path, name: str, resolution: tuple[int, int], machine: Machine) -> Any:
        if name == "vae_encoder":
            raise PlanError("no plan")
        component = spec.component(name)
        profile = component_profile(component, latent_sides(resolution, spec.downscale), Rows(2, 4, 4))
        own = resolution if depends_on_resolution(component) else None
        plan = f"{name}-{resolution[0]}.plan"
        return folder / plan, SimpleNamespace(recipe=SimpleNamespace(resolution=own), profile=profile)

    def run(component: Component, folder: Path, provider: str, settings: Settings, *, plan: Path) -> FakeRunner:
        found.append((plan.name, provider))
        return FakeRunner(component)

    monkeypatch.setattr(plan_runner, "this_machine", lambda name: Machine("tensorrt", "11.4.0", (8, 9)))
    monkeypatch.setattr(plan_runner, "find_plan", find)
    monkeypatch.setattr(plan_runner, "OrtRunner", run)
    return found


def runner_of(name: str, fake_export: Path) -> PlanRunner:
    spec = PipelineSpec.read(fake_export)
    runner = open_plans(spec.component(name), spec, fake_export, "auto", DEFAULTS)
    assert isinstance(runner, PlanRunner)
    return runner


def zeros(runner: PlanRunner, rows: int, side: int) -> dict[str, Any]:
    return runner.component.zeros({"rows": rows, "height": side, "width": side, "tokens": 77})


def test_each_resolution_has_a_plan_and_what_is_fed_chooses(opened: list[tuple[str, str]], fake_export: Path) -> None:
    runner = runner_of("unet", fake_export)
    assert runner.provider == "tensorrt"
    assert opened == [("unet-64.plan", "tensorrt"), ("unet-128.plan", "tensorrt")]
    for side in (8, 16):
        assert runner.infer(zeros(runner, 3, side))["out_sample"].shape == (3, 4, side, side)


def test_one_plan_serves_all_resolutions_where_they_make_no_difference(
    opened: list[tuple[str, str]], fake_export: Path
) -> None:
    runner = runner_of("text_encoder", fake_export)
    assert opened == [("text_encoder-64.plan", "tensorrt")]
    assert np.isfinite(runner.infer(zeros(runner, 2, 8))["last_hidden_state"]).all()


def test_a_size_without_a_plan_is_refused(opened: list[tuple[str, str]], fake_export: Path) -> None:
    runner = runner_of("unet", fake_export)
    with pytest.raises(FeedError, match=r"unet has no plan for latents of \(24, 24\), only \[\(8, 8\), \(16, 16\)\]"):
        runner.infer(zeros(runner, 2, 24))


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_that_a_plan_does_not_take_are_refused(
    opened: list[tuple[str, str]], fake_export: Path, rows: int
) -> None:
    runner = runner_of("unet", fake_export)
    with pytest.raises(FeedError, match=rf"'sample' of unet has shape \[{rows}, 4, 8, 8\], its plan takes 2x4x8x8 to"):
        runner.infer(zeros(runner, rows, 8))


def test_a_plan_that_is_missing_is_told(opened: list[tuple[str, str]], fake_export: Path) -> None:
    with pytest.raises(PlanError, match="no plan"):
        runner_of("vae_encoder", fake_export)
