"""A deployment on fake networks: everything but the numbers is real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.catalog import Widths, text_to_image_components
from engines.component import Component, PipelineSpec
from engines.runner import FakeRunner
from server.config import ServerConfig
from server.pipeline import Pipeline
from server.service import Service
from tests.fakes import BlockableRunner

# A call of any size takes as long, so that calls are filled.
EVEN = ((2, 0.002), (16, 0.002))


@pytest.fixture(scope="session")
def fake_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder whose components have no files; `provider="fake"` serves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("fake_export")
    widths = Widths(context_length=77, context_width=8, latent_channels=4, unet_channels=4, downscale=8)
    components = {
        name: Component(name, f"{name}.onnx", inputs, outputs)
        for name, (inputs, outputs) in text_to_image_components(widths).items()
    }
    spec = PipelineSpec(
        checkpoint="tests/fake",
        family="sd1",
        fingerprint="0" * 64,
        key="1" * 64,
        prediction_type="epsilon",
        scaling_factor=0.18215,
        latent_channels=4,
        downscale=8,
        schedule={
            "_class_name": "DDIMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
        resolutions=((64, 64), (128, 128)),
        tokenizer="tokenizer",
        tokenizer_sha256="",
        context_length=77,
        text_layers=12,
        components=components,
    )
    spec.write(folder)
    words = ["<start>", "<end>", "<unknown>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    special = {"start": "<start>", "end": "<end>", "pad": "<end>"}
    (folder / "tokenizer" / "config.json").write_text(json.dumps(special))
    return folder


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
    made = Service(Pipeline(spec, fake_export, runners), config)
    made.start()
    for runner in runners.values():
        runner.rows.clear()
    yield made
    for runner in runners.values():
        runner.release()
    made.close()
