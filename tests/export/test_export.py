"""An export is complete, done once, and done again when anything that it depends on has changed."""

import errno
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.catalog import components_of
from engines.component import PIPELINE_FILE, Component, PipelineSpec, file_sha256
from engines.errors import ArtefactError
from export import export, trace
from export.checkpoint import Checkpoint
from export.errors import ExportError, ParityError
from export.export import Options, export_checkpoint, export_key, exported
from export.parity import limit_of
from export.preview import preview_projection

NAMES = ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
ROOT = Path(__file__).resolve().parents[2]
RESOLUTIONS = [(64, 64), (128, 128)]
FIGURES = ("max_abs", "mean_abs", "max_scaled", "limit")


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

    def copy(network: Any, inputs: Any, outputs: Any, path: Path, plan: Any, *told: Any) -> None:
        names.append(path.stem)
        shutil.copyfile(tiny_export / path.name, path)

    monkeypatch.setattr(trace, "export_onnx", copy)
    monkeypatch.setattr(trace, "references", lambda *given: [])
    monkeypatch.setattr(trace, "compare", lambda *given: dict.fromkeys(FIGURES, 0.0))
    return names


def is_exported(folder: Path, options: Options, checkpoint: Checkpoint) -> bool:
    """Whether the export of those options is there, every file unchanged."""
    spec = exported(folder, export_key(checkpoint, options))
    if spec is None or list(spec.components) != NAMES:
        return False
    try:
        spec.verify(folder)
    except ArtefactError:
        return False
    return True


def key_of(checkpoint: Checkpoint) -> str:
    return export_key(checkpoint, Options(RESOLUTIONS))


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
    again = preview_projection(checkpoint)
    # Computed in another process, where sums may be added up in another order.
    assert np.allclose(spec.preview.matrix, again.matrix, rtol=1e-3, atol=1e-4)
    assert np.allclose(spec.preview.bias, again.bias, rtol=1e-3, atol=1e-4)


def test_pipeline_json_lists_components_that_passed_and_are_there(checkpoint: Checkpoint, tiny_export: Path) -> None:
    spec = PipelineSpec.read(tiny_export)
    assert list(spec.components) == NAMES
    for name, component in spec.components.items():
        assert (component.inputs, component.outputs) == components_of(
            checkpoint.family, checkpoint.task, checkpoint.widths
        )[name]
        assert component.sha256 == file_sha256(tiny_export / component.file)
        assert component.precision == "fp32"
        assert component.parity["limit"] == limit_of(component)
        assert 0 < component.parity["mean_abs"] < component.parity["max_abs"] <= component.parity["limit"]


def test_an_export_holds_nothing_else(tiny_export: Path) -> None:
    assert {path.relative_to(tiny_export).as_posix() for path in files(tiny_export)} == {
        PIPELINE_FILE,
        "tokenizer/tokenizer.json",
        "tokenizer/config.json",
        *(f"{name}{suffix}" for name in NAMES for suffix in (".onnx", ".weights.json")),
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
    spec = export_checkpoint(checkpoint, folder, Options(RESOLUTIONS))
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
    assert not is_exported(folder, Options(RESOLUTIONS), checkpoint)
    export_checkpoint(checkpoint, folder, Options(RESOLUTIONS))
    assert traced == [Path(file).stem for file in [file] if file.endswith(".onnx")]
    assert is_exported(folder, Options(RESOLUTIONS), checkpoint)
    assert (folder / file).read_bytes() == (tiny_export / file).read_bytes()


@pytest.mark.parametrize("damage", [empty, Path.unlink])
def test_without_a_pipeline_json_nothing_counts_as_exported(checkpoint: Checkpoint, folder: Path, damage: Any) -> None:
    damage(folder / PIPELINE_FILE)
    assert not is_exported(folder, Options(RESOLUTIONS), checkpoint)


def test_a_leftover_of_external_weights_is_noticed(checkpoint: Checkpoint, folder: Path, traced: list[str]) -> None:
    leftover = folder / "unet.onnx.data"
    leftover.write_bytes(b"weights of another checkpoint")
    assert not is_exported(folder, Options(RESOLUTIONS), checkpoint)
    export_checkpoint(checkpoint, folder, Options(RESOLUTIONS))
    assert not leftover.exists()


def test_the_key_covers_every_file_that_makes_an_export() -> None:
    """But not those that only raise, compare, or are called by hand."""
    others = {
        f"export/{name}.py"
        for name in (
            "errors",
            "parity",
            "__init__",
            "__main__",
            "random_weights",
            "overflow",
            "rounding",
            "unfinished",
            "fingerprint",
            "int8",
        )
    }
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "export").glob("*.py")} - others == {
        source for source in export.SOURCES if source.startswith("export/")
    }


def test_another_list_of_resolutions_is_exported_again(checkpoint: Checkpoint, folder: Path, traced: list[str]) -> None:
    spec = export_checkpoint(checkpoint, folder, Options([(64, 128)]))
    assert traced == NAMES
    assert spec.resolutions == PipelineSpec.read(folder).resolutions == ((64, 128),)


def test_other_weights_are_exported_again(tiny_checkpoint: Path, folder: Path, traced: list[str]) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, folder.parent / "other"))
    (other / "model_index.json").write_text((other / "model_index.json").read_text() + "\n")
    export_checkpoint(Checkpoint.open(str(other)), folder, Options(RESOLUTIONS))
    assert traced == NAMES


def test_the_key_covers_options_and_libraries(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        export_key(checkpoint, Options(RESOLUTIONS)),
        export_key(checkpoint, Options(RESOLUTIONS, "fp16")),
        export_key(checkpoint, Options(RESOLUTIONS[:1])),
        export_key(checkpoint, Options(RESOLUTIONS, controlled=True)),
        export_key(checkpoint, Options(RESOLUTIONS[::-1])),
    ]
    assert export_key(checkpoint, Options(RESOLUTIONS)) == keys[0]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    keys.append(export_key(checkpoint, Options(RESOLUTIONS)))
    monkeypatch.setattr(export, "SOURCES", export.SOURCES[:-1])
    keys.append(export_key(checkpoint, Options(RESOLUTIONS)))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((0, 0), "64x64"),
        ((64, 72), "64x64 or 64x128"),
        ((100, 64), "64x64 or 128x64"),
        ((500, 768), "448x768 or 512x768"),
        ((-64, 64), "64x64"),
    ],
    ids=str,
)
def test_resolutions_that_do_not_fit_are_refused_before_anything_is_written(
    checkpoint: Checkpoint, tmp_path: Path, size: tuple[int, int], nearest: str
) -> None:
    with pytest.raises(ExportError) as caught:
        export_checkpoint(checkpoint, tmp_path / "export", Options([(64, 64), size]))
    assert str(caught.value) == (
        f"resolution {size[0]}x{size[1]} does not fit: both sides must be multiples of 64 pixels, such as {nearest}"
    )
    assert not (tmp_path / "export").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files(folder)}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_export_that_fails_leaves_what_was_there(
    checkpoint: Checkpoint,
    folder: Path,
    traced: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def stop_at_unet(network: Any, inputs: Any, outputs: Any, path: Path, plan: Any, *told: Any) -> None:
        path.write_bytes(b"half of something")
        if path.stem == "unet":
            raise error

    before = contents(folder)
    with monkeypatch.context() as patched:
        patched.setattr(trace, "export_onnx", stop_at_unet)
        with pytest.raises((KeyboardInterrupt, ExportError)):
            export_checkpoint(checkpoint, folder, Options([(64, 64)]))
        with pytest.raises((KeyboardInterrupt, ExportError)):
            export_checkpoint(checkpoint, folder.parent / "new", Options([(64, 64)]))
    assert contents(folder) == before
    assert not (folder.parent / "new").exists()
    export_checkpoint(checkpoint, folder, Options([(64, 64)]))
    assert traced == NAMES
    assert is_exported(folder, Options([(64, 64)]), checkpoint)


def test_a_full_disk_is_told_in_one_sentence(
    checkpoint: Checkpoint, tmp_path: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trace, "export_onnx", full)
    with pytest.raises(ExportError) as caught:
        export_checkpoint(checkpoint, tmp_path, Options(RESOLUTIONS))
    assert str(caught.value) == (
        f"{tmp_path} cannot be written (No space left on device); give another --out, or make room there"
    )


def test_components_are_exported_alone_and_added_to(checkpoint: Checkpoint, tmp_path: Path, traced: list[str]) -> None:
    first = export_checkpoint(checkpoint, tmp_path, Options(RESOLUTIONS, components=("vae_decoder",)))
    assert list(first.components) == traced == ["vae_decoder"]
    second = export_checkpoint(checkpoint, tmp_path, Options(RESOLUTIONS, components=("unet", "vae_decoder")))
    assert traced == ["vae_decoder", "unet"]
    assert set(second.components) == {"unet", "vae_decoder"}
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"unet.onnx", "vae_decoder.onnx"}
    assert second == PipelineSpec.read(tmp_path)


def test_components_of_other_weights_are_not_kept(tiny_checkpoint: Path, folder: Path, traced: list[str]) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, folder.parent / "other"))
    (other / "model_index.json").write_text((other / "model_index.json").read_text() + "\n")
    spec = export_checkpoint(Checkpoint.open(str(other)), folder, Options(RESOLUTIONS, components=("unet",)))
    assert list(spec.components) == traced == ["unet"]
    assert [path.name for path in folder.glob("*.onnx")] == ["unet.onnx"]


def test_a_component_that_the_checkpoint_does_not_have_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no component controlnet; choose of text_encoder, unet, vae_encoder"):
        export_checkpoint(checkpoint, tmp_path, Options(RESOLUTIONS, components=("controlnet",)))


def test_a_component_that_differs_from_torch_leaves_no_pipeline_json(
    checkpoint: Checkpoint, tmp_path: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ_at_unet(network: Any, component: Component, *rest: Any) -> dict[str, float]:
        if component.name == "unet":
            raise ParityError("unet differs from torch")
        return dict.fromkeys(FIGURES, 0.0)

    monkeypatch.setattr(trace, "compare", differ_at_unet)
    with pytest.raises(ParityError, match="unet differs from torch"):
        export_checkpoint(checkpoint, tmp_path, Options(RESOLUTIONS))
    assert traced == ["text_encoder", "unet"]
    assert not (tmp_path / PIPELINE_FILE).exists()


@pytest.mark.parametrize("name", ["text_encoder", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_half_precision_is_inside_only(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spec = export_checkpoint(checkpoint, tmp_path, Options([(64, 64)], "fp16", components=(name,)))
    component = spec.component(name)
    graph = onnx.load(tmp_path / component.file).graph
    weights = [w for w in graph.initializer if w.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)]
    halves = sum(len(w.raw_data) // 2 for w in weights if w.data_type == onnx.TensorProto.FLOAT16)
    raised = {name for node in graph.node if node.name.startswith("island/") for name in node.input}
    kept = [w for w in weights if w.data_type == onnx.TensorProto.FLOAT and w.name not in raised]
    singles = sum(len(w.raw_data) // 4 for w in kept)
    assert halves > 10_000
    assert singles < 100
    outside = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    assert set(outside) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32}
    assert component.precision == "fp16"
    assert 0 < component.parity["max_abs"] <= limit_of(component) == component.parity["limit"]
