"""A deployment on fake networks: everything but the numbers is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from engines.component import PipelineSpec
from engines.runner import FakeRunner
from server.checkpoints import Checkpoints
from server.config import ServerConfig
from server.pipeline import Pipeline
from server.service import Service
from tests.fakes import BlockableRunner

ROOT = Path(__file__).resolve().parent.parent.parent
# A call of any size takes as long, so that calls are filled.
EVEN = ((2, 0.002), (16, 0.002))


@pytest.fixture
def runners(fake_export: Path) -> dict[str, BlockableRunner]:
    spec = PipelineSpec.read(fake_export)
    seconds = {"unet": lambda rows: 0.002}
    return {
        name: BlockableRunner(FakeRunner(component, seconds.get(name, lambda rows: 0.0)))
        for name, component in spec.components.items()
    }


@pytest.fixture
def service(fake_export: Path, runners: dict[str, BlockableRunner]) -> Iterator[Service]:
    """A running service whose networks can be held, broken and counted."""
    spec = PipelineSpec.read(fake_export)
    config = ServerConfig(model=fake_export, provider="fake", max_rows=16, queue_limit=40, step_seconds=EVEN)
    made = Service(Checkpoints([Pipeline(spec, fake_export, runners, "fake")]), config)
    made.start()
    for runner in runners.values():
        runner.rows.clear()
    yield made
    for runner in runners.values():
        runner.release()
    made.close()


@pytest.fixture(scope="session")
def task_exports(embedded_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The variant of the embedded checkpoint that is for a task, and its export for small pictures."""
    from tests.task_checkpoints import export_variant

    return cache(lambda task: export_variant(task, ROOT / "out", embedded_export, tmp_path_factory.mktemp(task)))
