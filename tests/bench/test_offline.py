"""Counting a graph's operations, and timing components, on graphs whose operations are known."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench import flops, offline
from bench.flops import GPU_CHAIN, Chain, Product, Sizes, operations, rotation
from bench.offline import chosen_sizes
from engines.component import Component, PipelineSpec, Precision, TensorSpec
from engines.errors import ArtefactError, EngineError
from engines.manifest import Machine
from engines.providers import DEFAULTS, Settings
from engines.runner import FakeRunner, open_runner

SIZES = Sizes(rows=3, tokens=77, area=4 * 9.0)


def saved(folder: Path, *, told: bool = True, dim: str = "8*s1") -> Path:
    """A convolution 4 -> 5 of 3x3, a cast, and a product of (rows, tokens, 6) by (6, 7)."""
    latent: list[str | int | None] = ["rows", 4, dim, "8*s2"]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, latent),
        helper.make_tensor_value_info("t", TensorProto.FLOAT, ["rows", "tokens", 6]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 5, dim, "8*s2"]),
        helper.make_tensor_value_info("u", TensorProto.FLOAT, ["rows", "tokens", 7]),
    ]
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, [5, 4, 3, 3], [0.0] * 180),
        helper.make_tensor("v", TensorProto.FLOAT, [6, 7], [0.0] * 42),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4),
        helper.make_node("Cast", ["t"], ["c"], to=TensorProto.FLOAT)
        if told
        else helper.make_node("Relu", ["t"], ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["u"]),
    ]
    graph = helper.make_graph(nodes, "both", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, folder / "both.onnx")
    return folder / "both.onnx"


def test_operations_are_two_for_each_product(tmp_path: Path) -> None:
    counted = operations(saved(tmp_path), SIZES)
    height, width = 8 * 4, 8 * 9
    assert counted == {"Conv": 2 * 3 * 5 * height * width * 4 * 9, "MatMul": 2 * 3 * 77 * 7 * 6}


def test_a_shape_that_is_not_told_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"does not tell the shapes of \['c'\]"):
        operations(saved(tmp_path, told=False), SIZES)


@pytest.mark.parametrize(
    ("dim", "size"), [("rows", 3), ("tokens", 77), ("2*s75", 12), ("16*s75*s95", 16 * 36), ("(s1*s2)//4", 9)]
)
def test_expressions_of_sizes(dim: str, size: float) -> None:
    assert SIZES.of(dim) == pytest.approx(size)


def test_an_expression_that_is_no_product_is_an_error() -> None:
    with pytest.raises(ArtefactError, match="'rows \\+ 1', which is no product"):
        SIZES.of("rows + 1")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_peak_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    monkeypatch.setattr(flops, "CPU_CHAIN", Chain(2, 64))
    product = Product("cpu", precision, DEFAULTS, tmp_path)
    seen = [product.flops() for _ in range(3)]
    assert min(seen) > 1e6
    assert product.best >= max(seen)


@pytest.mark.parametrize(("precision", "apart"), [("fp32", (0, 1e-5)), ("fp16", (0, 1e-2)), ("int8", (1e-3, 0.08))])
def test_the_product_is_of_that_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, apart: tuple[float, float]
) -> None:
    """There and back again: what comes out is what went in, as far as the precision can tell."""
    monkeypatch.setattr(flops, "CPU_CHAIN", Chain(4, 64))
    Product("cpu", precision, DEFAULTS, tmp_path)
    column = (TensorSpec("x", "float32", (64, 1)),), (TensorSpec("y", "float32", (64, 1)),)
    runner = open_runner(Component("product", f"product-{precision}.onnx", *column), tmp_path, "cpu", DEFAULTS)
    x = np.random.default_rng(1).uniform(-1, 1, (64, 1)).astype(np.float32)
    difference = float(np.abs(runner.infer({"x": x})["y"] - np.abs(x)).max())
    assert apart[0] <= difference <= apart[1]


def test_all_products_of_a_chain_are_in_its_graph_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "CPU_CHAIN", Chain(6, 16))
    Product("cpu", "fp32", DEFAULTS, tmp_path)
    nodes = onnx.load(tmp_path / "product-fp32.onnx").graph.node
    assert sum(node.op_type == "MatMul" for node in nodes) == 6
    assert Chain(6, 16).operations == 6 * 2 * 16**3
    # At a rate that no GPU has, what a call of it takes besides would still be small beside the products.
    assert GPU_CHAIN.operations / 1e15 > 5e-3


def test_a_rotation_turned_twice_is_none() -> None:
    turned = rotation(16)
    assert np.allclose(turned @ turned, np.eye(16), atol=1e-6)
    assert np.abs(turned).min() > 0


@pytest.fixture
def export(tmp_path: Path, fake_export: Path) -> Path:
    """An export whose only component is a convolution and a product."""
    saved(tmp_path)
    inputs = (
        TensorSpec("x", "float32", ("rows", 4, "height", "width")),
        TensorSpec("t", "float32", ("rows", "tokens", 6)),
    )
    outputs = (
        TensorSpec("y", "float32", ("rows", 5, "height", "width")),
        TensorSpec("u", "float32", ("rows", "tokens", 7)),
    )
    both = Component("unet", "both.onnx", inputs, outputs)
    replace(PipelineSpec.read(fake_export), components={"unet": both}).write(tmp_path)
    return tmp_path


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    offline.add_options(parser)
    return parser.parse_args(arguments)


def test_a_component_is_timed_over_rows_and_sizes(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "CPU_CHAIN", Chain(2, 64))
    result = offline.run(parsed("--model", str(export), "--provider", "cpu", "--rows", "1,3", "--repeats", "2"))
    assert json.loads(json.dumps(result)) == result
    assert (result["provider"], list(result["peak_tflops"])) == ("cpu", ["fp32"])
    assert (result["checkpoint"], result["fingerprint"]) == ("tests/fake", "0" * 64)
    kinds = [(timing["size"], timing["rows"]) for timing in result["timings"]]
    assert kinds == [("64x64", 1), ("64x64", 3), ("128x128", 1), ("128x128", 3)]
    assert all(timing["median_ms"] > 0 and timing["resident_mb"] > 0 for timing in result["timings"])
    assert all(
        timing["share"] > 0 and timing["peak_tflops"] <= result["peak_tflops"]["fp32"] for timing in result["timings"]
    )


def test_plans_are_timed_where_they_are_asked_for(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what runs them is another: the peak is measured by their provider too."""
    opened: list[tuple[str, tuple[tuple[int, int], ...], str]] = []

    def open_(component: Component, spec: PipelineSpec, folder: Path, provider: str, settings: Settings) -> FakeRunner:
        opened.append((component.name, spec.resolutions, provider))
        return FakeRunner(component)

    monkeypatch.setattr(flops, "CPU_CHAIN", Chain(2, 64))
    monkeypatch.setattr(offline, "open_plans", open_)
    monkeypatch.setattr("engines.runner.this_machine", lambda name: Machine("tensorrt", f"11.4 of {name}", (8, 9)))
    monkeypatch.setattr(offline, "Product", lambda provider, *rest: Product("cpu", *rest))
    options = ("--model", str(export), "--rows", "1", "--repeats", "1", "--sizes", "128")
    result = offline.run(parsed("--plans", *options))
    assert opened == [("unet", ((128, 128),), "tensorrt")]
    assert (result["provider"], result["plans"]) == ("tensorrt", True)
    assert [timing["size"] for timing in result["timings"]] == ["128x128"]
    assert offline.run(parsed("--provider", "cpu", *options))["plans"] is False


def test_figures_and_curves_are_told(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "CPU_CHAIN", Chain(2, 64))
    result = offline.run(parsed("--model", str(export), "--provider", "cpu", "--rows", "1,3", "--repeats", "7"))
    call, share = (result["measures"][f"unet 64x64 x3: {what}"] for what in ("call", "share of the peak"))
    assert (call["unit"], call["better"], len(call["samples"])) == ("ms", "lower", 7)
    assert call["value"] == pytest.approx(sorted(call["samples"])[3])
    assert (share["better"], len(share["samples"])) == ("higher", 7)
    assert [name for name in result["measures"] if "memory" in name][:2] == [
        *("unet 64x64 x1: host memory", "unet 64x64 x3: host memory")
    ]
    assert all(timing["device_mb"] is None for timing in result["timings"])
    times, shares = result["plots"]
    medians = {(timing["size"], timing["rows"]): timing["median_ms"] for timing in result["timings"]}
    assert {(size, rows): ms for size, points in times["series"].items() for rows, ms in points} == medians
    assert list(shares["series"]) == ["unet 64x64", "unet 128x128"]


def test_what_was_timed_before_a_failure_is_kept(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "CPU_CHAIN", Chain(2, 64))
    spec = PipelineSpec.read(export)
    missing = replace(spec.component("unet"), name="vae_decoder", file="vae_decoder.onnx")
    replace(spec, components={**spec.components, "vae_decoder": missing}).write(export)
    result = offline.run(parsed("--model", str(export), "--provider", "cpu", "--rows", "1", "--repeats", "1"))
    assert result["partial"]
    assert [timing["component"] for timing in result["timings"]] == ["unet", "unet"]
    assert "vae_decoder.onnx" in result["failures"][0]


def test_what_a_gpu_uses_is_told_beside_what_the_host_does() -> None:
    timing = offline.Timing("unet", "64x64", 2, 1.0, 0.1, 9.0, 1.0, 0.5, 2.0, 900, 100, 2048)
    found = {measure.name: measure.value for measure in offline._measures([offline.Timed(timing, [0.001], [0.5])])}
    assert found["unet 64x64 x2: host memory"] == 100
    assert found["unet 64x64 x2: device memory"] == 2048


def test_what_was_timed_before_an_interrupt_is_kept(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "CPU_CHAIN", Chain(2, 64))
    timed, calls = offline.timed, iter(range(4))

    def interrupted(call: Callable[[], object], repeats: int) -> list[float]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return timed(call, repeats)

    monkeypatch.setattr(offline, "timed", interrupted)
    options = parsed("--model", str(export), "--provider", "cpu", "--rows", "1,2,3", "--repeats", "1")
    result = offline.run(options)
    assert (result["partial"], result["failures"]) == (True, ["interrupted"])
    assert [timing["rows"] for timing in result["timings"]] == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        offline.run(options)


@pytest.mark.parametrize("options", [["--repeats", "0"], ["--rows", "1,0"], ["--sizes", "77"], ["--rows", "0"]])
def test_what_cannot_be_timed_is_refused(export: Path, options: list[str]) -> None:
    with pytest.raises(EngineError, match=options[0]):
        offline.run(parsed("--model", str(export), "--provider", "cpu", *options))


def test_sizes_are_named_by_their_height(fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    assert chosen_sizes((), spec) == ((64, 64), (128, 128))
    assert list(chosen_sizes((128,), spec)) == [(128, 128)]
