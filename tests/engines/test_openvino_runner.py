"""OpenVINO by itself, on a graph of one product: what it computes, keeps and refuses."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import openvino_runner
from engines.component import Component, TensorSpec
from engines.errors import ArtefactError, FeedError, ProviderError
from engines.openvino_runner import OpenVinoRunner, forget
from engines.providers import Settings

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)
PRODUCT = Component(
    "product", "product.onnx", (TensorSpec("x", "float32", ("rows", 3)),), (TensorSpec("y", "float32", ("rows", 4)),)
)
EXACT = Settings(precision="f32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, tmp_path / PRODUCT.file)
    return tmp_path


def rows(count: int) -> Any:
    return np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)


def test_one_compiled_network_runs_with_any_number_of_rows(folder: Path) -> None:
    runner = OpenVinoRunner(PRODUCT, folder, EXACT)
    for count in (1, 5, 2):
        np.testing.assert_allclose(runner.infer({"x": rows(count)})["y"], rows(count) @ WEIGHTS, rtol=1e-5)
    assert (runner.provider, runner.component) == ("openvino", PRODUCT)


def test_what_a_call_gave_outlives_the_next_call(folder: Path) -> None:
    runner = OpenVinoRunner(PRODUCT, folder, EXACT)
    first = runner.infer({"x": np.ones((1, 3), np.float32)})["y"]
    kept = first.copy()
    runner.infer({"x": np.zeros((1, 3), np.float32)})
    np.testing.assert_array_equal(first, kept)
    assert kept.any()


def test_an_array_that_is_a_part_of_another_is_taken(folder: Path) -> None:
    """The loop feeds the first rows of a larger array."""
    x = np.asfortranarray(rows(4))[:2]
    outputs = OpenVinoRunner(PRODUCT, folder, EXACT).infer({"x": x})
    np.testing.assert_allclose(outputs["y"], x @ WEIGHTS, rtol=1e-5)


def test_what_is_compiled_is_kept_and_used_again(folder: Path) -> None:
    settings = Settings(precision="f32", cache=folder / "cache")
    OpenVinoRunner(PRODUCT, folder, settings)
    blobs = list((folder / "cache").rglob("*.blob"))
    assert len(blobs) == 1
    stamp = blobs[0].stat().st_mtime_ns
    outputs = OpenVinoRunner(PRODUCT, folder, settings).infer({"x": rows(2)})
    np.testing.assert_allclose(outputs["y"], rows(2) @ WEIGHTS, rtol=1e-5)
    assert [(b, b.stat().st_mtime_ns) for b in (folder / "cache").rglob("*.blob")] == [(blobs[0], stamp)]


def test_bf16_is_close(folder: Path) -> None:
    outputs = OpenVinoRunner(PRODUCT, folder, Settings(precision="bf16", threads=1)).infer({"x": rows(2)})
    np.testing.assert_allclose(outputs["y"], rows(2) @ WEIGHTS, atol=0.1)


def test_wrong_feeds_are_refused(folder: Path) -> None:
    with pytest.raises(FeedError, match="feed exactly"):
        OpenVinoRunner(PRODUCT, folder, EXACT).infer({"z": rows(1)})


def test_what_openvino_raises_is_a_provider_error(folder: Path) -> None:
    loose = replace(PRODUCT, inputs=(TensorSpec("x", "float32", ("rows", "width")),))
    with pytest.raises(ProviderError, match=r"^openvino failed on product: "):
        OpenVinoRunner(loose, folder, EXACT).infer({"x": np.zeros((2, 5), np.float32)})


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-9], lambda whole: bytes(len(whole))])
def test_a_damaged_file_is_named_with_the_remedy(folder: Path, damage: Any) -> None:
    path = folder / PRODUCT.file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtefactError, match=r"product\.onnx is damaged \(.+\); run `python -m export` again"):
        OpenVinoRunner(PRODUCT, folder, EXACT)


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"product\.onnx does not exist; run `python -m export` again"):
        OpenVinoRunner(PRODUCT, tmp_path, EXACT)


def test_a_graph_with_other_inputs_than_the_component_is_refused(folder: Path) -> None:
    other = replace(PRODUCT, inputs=(TensorSpec("sample", "float32", ("rows", 3)),))
    with pytest.raises(ArtefactError, match=r"takes \['x'\], pipeline\.json says \['sample'\]"):
        OpenVinoRunner(other, folder, EXACT)


def test_an_option_that_openvino_does_not_take_is_a_provider_error(folder: Path) -> None:
    with pytest.raises(ProviderError, match=r"openvino cannot load .*product\.onnx"):
        OpenVinoRunner(PRODUCT, folder, Settings(precision="f12"))


def test_without_the_package_the_remedy_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runner, "available", lambda: False)
    with pytest.raises(ProviderError, match="run `pip install openvino`"):
        OpenVinoRunner(PRODUCT, folder)


def test_compiled_networks_that_were_not_read_for_longest_are_forgotten(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "read", "old", "older"]):
        path = tmp_path / f"{name}.blob"
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - 100 * age, 1e9 - 100 * age))
    os.utime(tmp_path / "read.blob", (2e9, 0))
    (tmp_path / "notes.txt").write_bytes(bytes(1000))
    forget(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {"new.blob", "read.blob", "notes.txt"}


def test_the_cache_of_compiled_networks_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(EXACT, cache=folder / "cache")
    OpenVinoRunner(PRODUCT, folder, settings)
    assert len(list(folder.glob("cache/openvino/*.blob"))) == 1
    monkeypatch.setattr(openvino_runner, "CACHE_BYTES", 0)
    OpenVinoRunner(PRODUCT, folder, settings)
    assert not list(folder.glob("cache/openvino/*.blob"))
