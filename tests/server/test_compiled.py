"""server.compiled: what plans take is known to the server before it calls them, wherever they run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.component import PipelineSpec
from engines.errors import PlanError
from engines.manifest import Machine
from engines.profiles import TOKENS, Rows, Tokens, depends_on_resolution
from engines.runner import FakeRunner
from server.checkpoints import open_checkpoints
from server.compiled import compiled_sizes
from server.conditioning import Text
from server.config import COMPONENTS, ServerConfig
from server.errors import InvalidRequest, StartupError
from tests.made_up_plans import VERSION, write_plan

HERE: dict[str, Any] = dict.fromkeys(COMPONENTS, "in_process")
NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
# Folder of an export with plans of these rows by component, and of these tokens.
Planned = Callable[..., Path]


@pytest.fixture
def planned(fake_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """On a machine with a GPU and the TensorRT that the plans are for; what would run them is a fake."""
    machine = Machine("tensorrt", VERSION, (8, 9))
    monkeypatch.setattr("engines.plan_runner.this_machine", lambda provider: machine)
    monkeypatch.setattr("server.pipeline.open_plans", lambda component, *rest: FakeRunner(component))

    def make(tokens: Tokens = TOKENS, **rows: Rows) -> Path:
        folder = shutil.copytree(fake_export, tmp_path / "export")
        (folder / "plans").mkdir()
        spec = PipelineSpec.read(folder)
        for name in NAMES:
            for resolution in spec.resolutions if depends_on_resolution(spec.component(name)) else (None,):
                used = rows.get(name, Rows(1, 2, 8))
                write_plan(folder, spec, name, resolution, (8, 9), rows=used, tokens=tokens)
        return folder

    return make


def served(folder: Path, **changes: Any) -> ServerConfig:
    return ServerConfig(**{"model": folder, "plans": True, "max_rows": 8, "provider": "tensorrt", **HERE, **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"unet": "triton"}, {"unet": "triton", "plans": False, "backend": "tensorrt"}],
    ids=["in process", "in Triton", "in Triton's TensorRT"],
)
def test_the_sizes_are_those_of_the_plans_wherever_they_run(planned: Planned, changes: dict[str, Any]) -> None:
    folder = planned(Tokens(77, 77, 231), unet=Rows(1, 4, 16), text_encoder=Rows(1, 2, 4))
    spec, config = PipelineSpec.read(folder), served(folder, **changes)
    assert compiled_sizes(spec.component("unet"), config, spec) == {"rows": (1, 16), "tokens": (77, 231)}
    if config.plans:
        assert compiled_sizes(spec.component("text_encoder"), config, spec) == {"rows": (1, 4)}


def test_a_gpu_that_compiles_is_known_by_its_profiles(fake_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PipelineSpec.read(fake_export)
    unet = spec.component("unet")
    monkeypatch.setattr("engines.runner.available", lambda: ("tensorrt", "cuda", "cpu"))
    asked = {provider: ServerConfig(fake_export, provider=provider, max_rows=24) for provider in ("tensorrt", "cuda")}
    assert {name: compiled_sizes(unet, config, spec) for name, config in asked.items()} == {"tensorrt": {}, "cuda": {}}
    monkeypatch.setattr("server.config.device_capability", lambda: (8, 9))
    assert {name: compiled_sizes(unet, config, spec) for name, config in asked.items()} == {
        "tensorrt": {"rows": (1, 24), "tokens": (77, 616)},
        "cuda": {},
    }


def test_a_prompt_that_the_plans_do_not_take_is_refused_before_they_run(planned: Planned) -> None:
    folder = planned(Tokens(77, 77, 231), text_encoder=Rows(1, 2, 4))
    pipeline = open_checkpoints(served(folder)).default
    encoder = pipeline.runners["text_encoder"]._runner  # type: ignore[attr-defined]
    long = Text(" ".join("abcdefgh" * 30), "a1111", 0)
    with pytest.raises(InvalidRequest, match="4 chunks of 77 tokens, and this server's UNet is compiled for 77 to 231"):
        pipeline.embed([long])
    words = [Text(letter, "none", 0) for letter in "abcdefghij"]
    encoder.calls.clear()
    assert len(pipeline.embed(words)) == 10
    assert encoder.calls == [4, 4, 2]


def test_the_default_plans_take_eight_chunks(planned: Planned) -> None:
    pipeline = open_checkpoints(served(planned())).default
    long = Text(" ".join("abcdefgh" * 100), "a1111", 0)
    assert pipeline.embed([long])[long].states.shape == (616, 8)


def test_pictures_are_decoded_in_calls_of_so_many(planned: Planned) -> None:
    folder = planned(vae_decoder=Rows(1, 1, 2))
    pipeline = open_checkpoints(served(folder)).default
    latents = np.random.default_rng(0).standard_normal((5, 4, 8, 8)).astype(np.float32)
    drawn = pipeline.decode(latents)
    decoder = pipeline.runners["vae_decoder"]._runner  # type: ignore[attr-defined]
    assert decoder.calls == [2, 2, 1]
    assert np.array_equal(drawn, np.concatenate([pipeline.decode(latents[i : i + 1]) for i in range(5)]))


@pytest.mark.parametrize(("tile", "calls"), [(64, 9), (72, 1)], ids=["a plan's size", "another"])
def test_there_are_no_tiles_of_a_size_that_has_no_plan(planned: Planned, tile: int, calls: int) -> None:
    pipeline = open_checkpoints(served(planned(), vae_tile=tile)).default
    pipeline.decode(np.zeros((1, 4, 16, 16), np.float32))
    decoder = pipeline.runners["vae_decoder"]._runner  # type: ignore[attr-defined]
    assert len(decoder.calls) == calls


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("unet", Rows(1, 2, 4), "the unet is compiled for 1 to 4 rows and may be called with 1 to 8: serve with "
                                "--max-rows 4, or build its plans with `python -m engines build DIR --rows unet=1:8:8"),
        ("unet", Rows(2, 4, 8), "the unet is compiled for 2 to 8 rows and may be called with 1 to 8: build its plans"),
        ("vae_encoder", Rows(2, 2, 4), "the vae_encoder is compiled for 2 to 4 rows and may be called with 1 to 1"),
    ],
)  # fmt: skip
def test_a_deployment_whose_calls_do_not_fit_the_plans_does_not_start(
    planned: Planned, name: str, rows: Rows, said: str
) -> None:
    with pytest.raises(StartupError, match=said):
        open_checkpoints(served(planned(**{name: rows})))


def test_padding_to_the_engines_sizes_makes_calls_fit(planned: Planned) -> None:
    folder = planned(unet=Rows(2, 4, 8))
    assert open_checkpoints(served(folder, batch_sizes=(2, 4, 8))).names == ("export",)


def test_a_missing_plan_is_told_with_the_remedy(planned: Planned) -> None:
    folder = planned()
    for plan in (folder / "plans").glob("unet-*"):
        plan.unlink()
    with pytest.raises(PlanError, match="has no plan of unet at 64x64"):
        open_checkpoints(served(folder))
