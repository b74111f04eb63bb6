"""An export with a UNet in int8: what it is, what it computes, and what is refused."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.component import PIPELINE_FILE, PipelineSpec
from engines.errors import ArtefactError, BuildError
from engines.picture import Case, feeds
from engines.providers import Settings
from engines.runner import open_runner
from export import int8
from export.errors import ExportError
from export.int8 import Calibration, edges, main, quantize, record, tokens

CALIBRATION = Calibration(pictures=2, steps=3)
CASE = Case((64, 64), 3, seed=77)


@pytest.fixture(scope="module")
def quantized(tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny export with a UNet in int8."""
    pytest.importorskip("nncf", reason="needs the extra `int8`")
    folder = tmp_path_factory.mktemp("int8")
    quantize(tiny_export, folder, CALIBRATION)
    return folder


def test_all_but_the_unet_is_as_it_was(quantized: Path, tiny_export: Path) -> None:
    ours, theirs = PipelineSpec.read(quantized), PipelineSpec.read(tiny_export)
    ours.verify(quantized)
    assert ours.components["unet"].precision == "int8"
    assert ours.key != theirs.key
    assert ours.fingerprint == theirs.fingerprint
    assert {n: c for n, c in ours.components.items() if n != "unet"} == {
        n: c for n, c in theirs.components.items() if n != "unet"
    }
    names = {path.name for path in tiny_export.iterdir()} - {"unet.weights.json"}
    assert {path.name for path in quantized.iterdir()} == names


def test_the_graph_multiplies_in_int8_but_for_its_edges(quantized: Path, tiny_export: Path) -> None:
    exact, ours = (onnx.load(folder / "unet.onnx") for folder in (tiny_export, quantized))
    kept = set(edges(exact))
    assert 2 < len(kept) < 20
    producer = {output: node.op_type for node in ours.graph.node for output in node.output}
    weights = {tensor.name: tensor.data_type for tensor in ours.graph.initializer}
    assert onnx.TensorProto.INT8 in weights.values()
    seen = Counter(
        (node.name in kept, producer.get(node.input[1]) == "DequantizeLinear")
        for node in ours.graph.node
        if node.op_type in ("Conv", "Gemm")
    )
    assert seen[True, True] == 0
    assert seen[True, False] == len(kept)
    assert seen[False, True] > 0
    assert seen[False, False] == 0
    assert (quantized / "unet.onnx").stat().st_size < (tiny_export / "unet.onnx").stat().st_size


@pytest.mark.parametrize(
    ("provider", "precision"), [("cpu", ""), ("openvino", "f32"), ("openvino", "bf16")], ids=["cpu", "f32", "bf16"]
)
def test_providers_compute_nearly_what_fp32_is(
    quantized: Path, tiny_export: Path, provider: str, precision: str
) -> None:
    if provider == "openvino":
        pytest.importorskip("openvino")
    spec = PipelineSpec.read(quantized)
    fed = feeds(spec.component("unet"), spec, CASE, 3)
    ours = open_runner(spec.component("unet"), quantized, provider, Settings(threads=1, precision=precision))
    exact = open_runner(PipelineSpec.read(tiny_export).component("unet"), tiny_export, "cpu")
    got, expected = ours.infer(fed)["out_sample"], exact.infer(fed)["out_sample"]
    apart = np.abs(got - expected) / expected.std()
    # That it is not the same shows that int8 was computed. A random network takes rounding badly: bf16 alone is 4e-2.
    assert 1e-4 < apart.mean() < 1e-1


def test_again_does_nothing_and_other_options_do(
    quantized: Path, tiny_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("quantised again")

    monkeypatch.setattr(int8, "_quantized_unet", fail)
    assert quantize(tiny_export, quantized, CALIBRATION) == PipelineSpec.read(quantized)
    with pytest.raises(AssertionError, match="quantised again"):
        quantize(tiny_export, quantized, replace(CALIBRATION, steps=4))
    PipelineSpec.read(quantized).verify(quantized)


def test_pictures_cover_the_timesteps_the_prompts_and_the_resolutions(tiny_export: Path) -> None:
    spec = PipelineSpec.read(tiny_export)
    pictures = record(spec, tiny_export, Calibration(pictures=3, steps=4))
    assert [len(calls) for calls in pictures] == [4] * 4
    assert {inputs["sample"].shape[-1] for calls in pictures for inputs, _ in calls} == {8, 16}
    for calls in pictures:
        assert [float(inputs["timestep"][0]) for inputs, _ in calls] == [999, 749, 500, 250]
    texts = [calls[0][0]["encoder_hidden_states"] for calls in pictures]
    assert not np.array_equal(texts[0], texts[1])
    # Each call is its own copy, not the last.
    assert not np.array_equal(pictures[0][0][0]["sample"], pictures[0][-1][0]["sample"])


def test_tokens_fill_one_chunk(tiny_export: Path) -> None:
    spec = PipelineSpec.read(tiny_export)
    start, end = (tokens("", spec, tiny_export, "text_encoder")[i] for i in (0, 1))
    short, long = (tokens(text, spec, tiny_export, "text_encoder") for text in ("a circle", "a circle " * 99))
    assert len(short) == len(long) == 77
    assert short[0] == long[0] == start
    assert long.index(end) == 76
    assert short[1:3] == long[1:3]


def test_what_cannot_be_quantised_is_refused(
    quantized: Path, tiny_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match="is in int8; give an export made with --precision fp32"):
        quantize(quantized, tmp_path / "out")
    with pytest.raises(ExportError, match="is the export itself"):
        quantize(tiny_export, tiny_export)
    spec = PipelineSpec.read(tiny_export)
    replace(spec, components={"vae_decoder": spec.component("vae_decoder")}).write(tmp_path)
    with pytest.raises(ExportError, match="has no UNet, only vae_decoder"):
        quantize(tmp_path, tmp_path / "out")
    assert main([str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 1
    assert "pipeline.json does not exist" in capsys.readouterr().err
    (tmp_path / "prompts").write_text("\n")
    assert main([str(tiny_export), "--out", str(tmp_path / "out"), "--prompts", str(tmp_path / "prompts")]) == 1
    assert "holds no prompt; write one a line" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tiny_export), "--out", str(tmp_path / "out"), "--pictures", "0"])
    assert not (tmp_path / "out").exists()


def test_without_nncf_it_says_what_to_install(
    tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install '\.\[int8\]'"):
        quantize(tiny_export, tmp_path / "out")


def test_a_damaged_export_leaves_nothing_behind(quantized: Path, tiny_export: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_export, damaged)
    with (damaged / "unet.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ArtefactError, match="is damaged"):
        quantize(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_what_was_there(
    quantized: Path, tiny_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    before = (quantized / PIPELINE_FILE).read_bytes()
    monkeypatch.setattr(int8, "_quantized", interrupt)
    assert main([str(tiny_export), "--out", str(quantized), "--steps", "5"]) == 1
    assert (quantized / PIPELINE_FILE).read_bytes() == before
    PipelineSpec.read(quantized).verify(quantized)
    assert not list(quantized.glob(".unfinished*"))


def test_a_plan_is_not_built_of_it(quantized: Path) -> None:
    from engines.build import Order, tasks
    from engines.compilers import open_compiler

    pytest.importorskip("tensorrt_rtx")
    compiler = open_compiler("tensorrt_rtx")
    with pytest.raises(BuildError, match="unet is in int8, which is made for CPUs"):
        tasks(PipelineSpec.read(quantized), Order(compiler="tensorrt_rtx"), compiler)
