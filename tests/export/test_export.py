"""An export is complete, done once, and done again when anything that it depends on has changed."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.catalog import components_of
from engines.component import PIPELINE_FILE, Component, PipelineSpec, file_sha256
from export import export, trace
from export.checkpoint import Checkpoint
from export.errors import ExportError, ParityError
from export.export import export_checkpoint, export_key, is_exported
from export.parity import LIMITS
from export.preview import preview_projection

NAMES = ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
ROOT = Path(__file__).resolve().parents[2]
RESOLUTIONS = [(64, 64), (128, 128)]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(str(tiny_checkpoint))


@pytest.fixture
def folder(tiny_export: Path, tmp_path: Path) -> Path:
    """A copy of a complete export."""
    return Path(shutil.copytree(tiny_export, tmp_path / "export"))


@pytest.fixture
def traced(tiny_export: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of tracing and comparing, copy what was traced before. Gives the names of what was traced."""
    names: list[str] = []

    def copy(network: Any, inputs: Any, outputs: Any, path: Path) -> None:
        names.append(path.stem)
        shutil.copyfile(tiny_export / path.name, path)

    monkeypatch.setattr(trace, "export_onnx", copy)
    monkeypatch.setattr(trace, "compare", lambda *given: {"max_abs": 0.0, "mean_abs": 0.0, "limit": 1.0})
    return names


def key_of(checkpoint: Checkpoint) -> str:
    return export_key(checkpoint, RESOLUTIONS, "fp32")


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def test_pipeline_json_says_everything_about_the_checkpoint(checkpoint: Checkpoint, tiny_export: Path) -> None:
    spec = PipelineSpec.read(tiny_export)
    assert (spec.checkpoint, spec.family, spec.prediction_type) == (checkpoint.name, "sd1", "epsilon")
    assert (spec.scaling_factor, spec.latent_channels, spec.downscale) == (0.18215, 4, 8)
    assert (spec.fingerprint, spec.key) == (checkpoint.fingerprint, key_of(checkpoint))
    assert spec.resolutions == ((64, 64), (128, 128))
    assert (spec.tokenizer, spec.context_length) == ("tokenizer", 77)
    assert spec.schedule["_class_name"] == "DDIMScheduler"
    assert (spec.schedule["beta_start"], spec.schedule["beta_end"]) == (0.00085, 0.012)
    assert spec.schedule["steps_offset"] == 1
    assert spec.preview == preview_projection(checkpoint)


def test_pipeline_json_lists_components_that_passed_and_are_there(checkpoint: Checkpoint, tiny_export: Path) -> None:
    spec = PipelineSpec.read(tiny_export)
    assert list(spec.components) == NAMES
    for name, component in spec.components.items():
        assert (component.inputs, component.outputs) == components_of(
            checkpoint.family, checkpoint.task, checkpoint.widths
        )[name]
        assert component.sha256 == file_sha256(tiny_export / component.file)
        assert component.precision == "fp32"
        assert component.parity["limit"] == LIMITS["fp32"][name]
        assert 0 < component.parity["mean_abs"] < component.parity["max_abs"] <= component.parity["limit"]


def test_an_export_holds_nothing_else(tiny_export: Path) -> None:
    assert {path.relative_to(tiny_export).as_posix() for path in files(tiny_export)} == {
        PIPELINE_FILE,
        "tokenizer/tokenizer.json",
        "tokenizer/config.json",
        *(f"{name}.onnx" for name in NAMES),
    }


def test_graphs_name_no_place_of_this_machine(tiny_export: Path) -> None:
    for path in tiny_export.glob("*.onnx"):
        content = path.read_bytes()
        assert [place for place in (ROOT, Path.home(), sys.prefix) if str(place).encode() in content] == []


def test_the_tokenizers_special_words_are_kept(tiny_export: Path) -> None:
    words = json.loads((tiny_export / "tokenizer/config.json").read_text())
    assert words == {"start": "<|startoftext|>", "end": "<|endoftext|>", "pad": "<|endoftext|>"}


def test_a_second_export_changes_nothing(checkpoint: Checkpoint, folder: Path, traced: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in files(folder)}
    spec = export_checkpoint(checkpoint, folder, RESOLUTIONS)
    assert {path: path.stat().st_mtime_ns for path in files(folder)} == before
    assert spec == PipelineSpec.read(folder)
    assert traced == []


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_byte, empty, Path.unlink])
@pytest.mark.parametrize("file", ["unet.onnx", "tokenizer/tokenizer.json", "tokenizer/config.json"])
def test_a_damaged_file_is_noticed_and_exported_again(
    checkpoint: Checkpoint, tiny_export: Path, folder: Path, traced: list[str], file: str, damage: Any
) -> None:
    damage(folder / file)
    assert not is_exported(folder, key_of(checkpoint))
    export_checkpoint(checkpoint, folder, RESOLUTIONS)
    assert traced == NAMES
    assert is_exported(folder, key_of(checkpoint))
    assert (folder / file).read_bytes() == (tiny_export / file).read_bytes()


@pytest.mark.parametrize("damage", [empty, Path.unlink])
def test_without_a_pipeline_json_nothing_counts_as_exported(checkpoint: Checkpoint, folder: Path, damage: Any) -> None:
    damage(folder / PIPELINE_FILE)
    assert not is_exported(folder, key_of(checkpoint))


def test_a_leftover_of_external_weights_is_noticed(checkpoint: Checkpoint, folder: Path, traced: list[str]) -> None:
    leftover = folder / "unet.onnx.data"
    leftover.write_bytes(b"weights of another checkpoint")
    assert not is_exported(folder, key_of(checkpoint))
    export_checkpoint(checkpoint, folder, RESOLUTIONS)
    assert not leftover.exists()


def test_the_key_covers_every_file_that_makes_an_export() -> None:
    """But not those that only raise, compare, or are called by hand."""
    others = {"export/errors.py", "export/parity.py", "export/__init__.py", "export/__main__.py"}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "export").glob("*.py")} - others == {
        source for source in export.SOURCES if source.startswith("export/")
    }


def test_another_list_of_resolutions_is_exported_again(checkpoint: Checkpoint, folder: Path, traced: list[str]) -> None:
    spec = export_checkpoint(checkpoint, folder, [(64, 128)])
    assert traced == NAMES
    assert spec.resolutions == PipelineSpec.read(folder).resolutions == ((64, 128),)


def test_other_weights_are_exported_again(tiny_checkpoint: Path, folder: Path, traced: list[str]) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, folder.parent / "other"))
    (other / "model_index.json").write_text((other / "model_index.json").read_text() + "\n")
    export_checkpoint(Checkpoint.open(str(other)), folder, RESOLUTIONS)
    assert traced == NAMES


def test_the_key_covers_options_and_libraries(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        export_key(checkpoint, RESOLUTIONS, "fp32"),
        export_key(checkpoint, RESOLUTIONS, "fp16"),
        export_key(checkpoint, RESOLUTIONS[:1], "fp32"),
        export_key(checkpoint, RESOLUTIONS[::-1], "fp32"),
    ]
    assert export_key(checkpoint, RESOLUTIONS, "fp32") == keys[0]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    keys.append(export_key(checkpoint, RESOLUTIONS, "fp32"))
    monkeypatch.setattr(export, "SOURCES", export.SOURCES[:-1])
    keys.append(export_key(checkpoint, RESOLUTIONS, "fp32"))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "size", [(0, 0), (64, 72), (100, 64), (32, 64), (-64, 64)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_resolutions_that_do_not_fit_are_refused_before_anything_is_written(
    checkpoint: Checkpoint, tmp_path: Path, size: tuple[int, int]
) -> None:
    with pytest.raises(ExportError) as caught:
        export_checkpoint(checkpoint, tmp_path / "export", [(64, 64), size])
    assert str(caught.value) == (
        f"resolution {size[0]}x{size[1]} does not fit: both sides must be multiples of 64 pixels"
    )
    assert not (tmp_path / "export").exists()


def test_an_interrupted_export_is_never_taken_for_a_complete_one(
    checkpoint: Checkpoint, folder: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_unet(network: Any, inputs: Any, outputs: Any, path: Path) -> None:
        if path.stem == "unet":
            raise KeyboardInterrupt
        path.write_bytes(b"half of something")

    with monkeypatch.context() as patched:
        patched.setattr(trace, "export_onnx", stop_at_unet)
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(checkpoint, folder, [(64, 64)])
    assert not (folder / PIPELINE_FILE).exists()
    export_checkpoint(checkpoint, folder, [(64, 64)])
    assert traced == NAMES
    assert is_exported(folder, export_key(checkpoint, [(64, 64)], "fp32"))


def test_a_component_that_differs_from_torch_leaves_no_pipeline_json(
    checkpoint: Checkpoint, tmp_path: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ_at_unet(network: Any, component: Component, *rest: Any) -> dict[str, float]:
        if component.name == "unet":
            raise ParityError("unet differs from torch")
        return {"max_abs": 0.0, "mean_abs": 0.0, "limit": 1.0}

    monkeypatch.setattr(trace, "compare", differ_at_unet)
    with pytest.raises(ParityError, match="unet differs from torch"):
        export_checkpoint(checkpoint, tmp_path, RESOLUTIONS)
    assert traced == ["text_encoder", "unet"]
    assert not (tmp_path / PIPELINE_FILE).exists()


@pytest.mark.parametrize("name", ["text_encoder", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_half_precision_is_inside_only(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    only = {name: components_of(checkpoint.family, checkpoint.task, checkpoint.widths)[name]}
    monkeypatch.setattr(export, "components_of", lambda *given: only)
    monkeypatch.setattr(trace, "components_of", lambda *given: only)
    spec = export_checkpoint(checkpoint, tmp_path, [(64, 64)], "fp16")
    component = spec.component(name)
    graph = onnx.load(tmp_path / component.file).graph
    weights = [w for w in graph.initializer if w.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)]
    halves = sum(len(w.raw_data) // 2 for w in weights if w.data_type == onnx.TensorProto.FLOAT16)
    singles = sum(len(w.raw_data) // 4 for w in weights if w.data_type == onnx.TensorProto.FLOAT)
    assert halves > 10_000
    assert singles < 100
    outside = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    assert set(outside) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32}
    assert component.precision == "fp16"
    assert 0 < component.parity["max_abs"] <= LIMITS["fp16"][name] == component.parity["limit"]
