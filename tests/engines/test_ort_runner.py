"""ONNX Runtime: which providers there are, and what happens to good and bad files; on a graph of one product."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import ort_runner
from engines.component import Component, TensorSpec
from engines.errors import ArtefactError, FeedError, ProviderError
from engines.ort_runner import OrtRunner, available_providers, reason
from engines.providers import PROVIDERS, Settings

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)
PRODUCT = Component(
    "product",
    "product.onnx",
    (TensorSpec("x", "float32", ("rows", 3)),),
    (TensorSpec("y", "float32", ("rows", 4)),),
)
FEEDS = {"x": np.array([[1, 2, 3], [0, 1, 0]], np.float32)}
BUILT_IN = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def product_model(*, operator: str = "MatMul", weights: str = "w") -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(WEIGHTS, weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save_model(product_model(), tmp_path / PRODUCT.file)
    return tmp_path


def with_external_data(folder: Path) -> Path:
    """Moves the weights out of the graph; returns their file."""
    path = folder / PRODUCT.file
    onnx.save_model(product_model(), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return path.with_name(f"{path.name}.data")


def test_a_component_runs_with_any_number_of_rows(folder: Path) -> None:
    runner = OrtRunner(PRODUCT, folder, "cpu", Settings(threads=1))
    for rows in (1, 2, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
        np.testing.assert_allclose(runner.infer({"x": x})["y"], x @ WEIGHTS, rtol=1e-6)
    assert (runner.provider, runner.component) == ("cpu", PRODUCT)


def test_weights_beside_the_graph_are_found(folder: Path) -> None:
    assert with_external_data(folder).stat().st_size >= WEIGHTS.nbytes
    outputs = OrtRunner(PRODUCT, folder, "cpu").infer(FEEDS)
    np.testing.assert_array_equal(outputs["y"], FEEDS["x"] @ WEIGHTS)


@pytest.mark.parametrize(
    ("built_in", "openvino", "found"),
    [
        (["CPUExecutionProvider"], False, ("cpu",)),
        (["AzureExecutionProvider", "CPUExecutionProvider"], True, ("openvino_ep", "cpu")),
        (BUILT_IN[1:], True, ("cuda", "openvino_ep", "cpu")),
        ([*BUILT_IN, "NvTensorRTRTXExecutionProvider"], False, ("tensorrt", "tensorrt_rtx", "cuda", "cpu")),
        (BUILT_IN, False, ("tensorrt", "cuda", "cpu")),
        (["OpenVINOExecutionProvider", "CPUExecutionProvider"], False, ("openvino_ep", "cpu")),
    ],
)
def test_providers_are_listed_with_the_preferred_one_first(
    monkeypatch: pytest.MonkeyPatch, built_in: list[str], openvino: bool, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: built_in)
    monkeypatch.setattr(ort_runner, "_openvino_devices", lambda: ("device",) if openvino else ())
    assert available_providers() == found


@pytest.mark.parametrize("provider", ["cuda", "tpu", "CPU", ""])
def test_a_provider_that_is_not_here_is_refused_with_the_choice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.setattr(ort_runner, "available_providers", lambda: ("openvino_ep", "cpu"))
    with pytest.raises(ProviderError) as caught:
        OrtRunner(PRODUCT, folder, provider)
    assert str(caught.value) == f"provider {provider!r} is not available here; choose one of openvino_ep, cpu"


def devices_with(monkeypatch: pytest.MonkeyPatch, plugin: Any) -> tuple[Any, ...]:
    """What is found of the CPU of a machine with that plug-in, a GPU and ONNX Runtime's own provider."""
    kinds = SimpleNamespace(CPU="CPU", GPU="GPU")
    cpu, gpu = SimpleNamespace(type=kinds.CPU), SimpleNamespace(type=kinds.GPU)
    listed = [("CPUExecutionProvider", cpu), ("OpenVINOExecutionProvider", gpu), ("OpenVINOExecutionProvider", cpu)]
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", plugin)
    monkeypatch.setattr("onnxruntime.register_execution_provider_library", lambda name, path: None)
    monkeypatch.setattr("onnxruntime.OrtHardwareDeviceType", kinds)
    devices = [SimpleNamespace(ep_name=name, device=device) for name, device in listed]
    monkeypatch.setattr("onnxruntime.get_ep_devices", lambda: devices)
    found: tuple[Any, ...] = ort_runner._openvino_devices.__wrapped__()
    return found


def test_openvino_takes_its_own_cpu_devices_only(monkeypatch: pytest.MonkeyPatch) -> None:
    (device,) = devices_with(monkeypatch, SimpleNamespace(get_library_path=lambda: "plugin.so"))
    assert (device.ep_name, device.device.type) == ("OpenVINOExecutionProvider", "CPU")


def test_openvino_is_absent_where_its_plugin_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_with(monkeypatch, None) == ()


def test_the_openvino_plugin_is_given_its_devices_and_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Options:
        def add_session_config_entry(self, key: str, value: str) -> None:
            given.append((key, value))

        def add_provider_for_devices(self, devices: list[str], options: dict[str, str]) -> None:
            given.append((devices, options))

    settings = Settings(threads=3, precision="f32")
    session = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x")])
    monkeypatch.setattr(ort_runner, "_openvino_devices", lambda: ("device",))
    monkeypatch.setattr("onnxruntime.SessionOptions", Options)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda path, options: session)
    assert OrtRunner(PRODUCT, folder, "openvino_ep", settings).provider == "openvino_ep"
    assert given[-1] == (["device"], PROVIDERS["openvino_ep"].options(settings))


@pytest.mark.skipif("openvino_ep" not in available_providers(), reason="no OpenVINO device here")
def test_the_openvino_plugin_computes_what_the_cpu_provider_does(folder: Path) -> None:
    outputs = OrtRunner(PRODUCT, folder, "openvino_ep").infer(FEEDS)
    np.testing.assert_allclose(outputs["y"], FEEDS["x"] @ WEIGHTS, rtol=1e-2)


class Opened:
    """Stands in for ONNX Runtime's sessions on a machine that has a GPU; keeps what they are opened with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, running: str) -> None:
        self.paths: list[Path] = []
        self.links: list[Path] = []
        self.providers: list[Any] = []
        self.entries: list[dict[str, str]] = []
        names = ["TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "CUDAExecutionProvider"]
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [*names, "CPUExecutionProvider"])
        monkeypatch.setattr("onnxruntime.InferenceSession", self.open)
        self._running = running

    def open(self, path: Path, options: Any, providers: Any) -> Any:
        self.paths.append(path)
        self.links += [link.resolve() for link in path.parent.glob("*.plan")]
        self.providers.append(providers)
        keys = ("ep.context_enable", "ep.context_file_path", "session.disable_cpu_ep_fallback")
        self.entries.append({key: value for key in keys if (value := entry(options, key))})
        inputs = [SimpleNamespace(name="x")]
        return SimpleNamespace(get_providers=lambda: [self._running], get_inputs=lambda: inputs)


def entry(options: Any, key: str) -> str:
    """A session setting, empty where it was not made."""
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return ""


def test_a_provider_that_was_left_out_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on with the CPU when the libraries of CUDA are not found."""
    Opened(monkeypatch, running="CPUExecutionProvider")
    with pytest.raises(ProviderError, match=r"does not start here; .* libraries are found, or choose another with"):
        OrtRunner(PRODUCT, folder, "cuda")


def test_a_gpu_provider_is_given_its_options_and_those_of_what_takes_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch, running="TensorrtExecutionProvider")
    OrtRunner(PRODUCT, folder, "tensorrt", Settings(device=1))
    ((first, options), (second, _), (third, _)) = opened.providers[0]
    assert [first, second, third] == BUILT_IN
    assert options == PROVIDERS["tensorrt"].options(Settings(device=1))
    assert opened.entries == [{}]


def test_a_compiled_session_is_kept_and_opened_at_the_next_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch, running="NvTensorRTRTXExecutionProvider")
    settings = Settings(cache=folder / "cache")
    OrtRunner(PRODUCT, folder, "tensorrt_rtx", settings)
    kept = Path(opened.entries[0]["ep.context_file_path"])
    assert (opened.paths[0], opened.entries[0]["ep.context_enable"]) == (folder / PRODUCT.file, "1")
    kept.touch()
    OrtRunner(PRODUCT, folder, "tensorrt_rtx", settings)
    assert (opened.paths[1], opened.entries[1]) == (kept, {})
    OrtRunner(replace(PRODUCT, sha256="f" * 64), folder, "tensorrt_rtx", settings)
    assert opened.entries[2]["ep.context_file_path"] != str(kept)


def test_a_kept_session_that_cannot_be_opened_is_compiled_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Opened(monkeypatch, running="NvTensorRTRTXExecutionProvider")
    settings = Settings(cache=folder / "cache")
    OrtRunner(PRODUCT, folder, "tensorrt_rtx", settings)
    kept = Path(opened.entries[0]["ep.context_file_path"])
    kept.touch()

    def open_(path: Path, options: Any, providers: Any) -> Any:
        if path == kept:
            raise RuntimeError("engine of another driver")
        return opened.open(path, options, providers)

    monkeypatch.setattr("onnxruntime.InferenceSession", open_)
    OrtRunner(PRODUCT, folder, "tensorrt_rtx", settings)
    assert (opened.paths[1], opened.entries[1]) == (folder / PRODUCT.file, opened.entries[0])
    assert (kept.exists(), "compiling product again" in caplog.text) == (False, True)


def test_a_plan_is_opened_as_a_context_model_with_no_other_provider_for_its_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch, running="TensorrtExecutionProvider")
    plan = folder / "product.plan"
    plan.write_bytes(b"plan")
    OrtRunner(PRODUCT, folder, "tensorrt", plan=plan)
    assert opened.links == [plan.resolve()]
    assert opened.entries == [{"session.disable_cpu_ep_fallback": "1"}]
    assert not opened.paths[0].exists()


def test_a_missing_plan_is_named_with_the_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Opened(monkeypatch, running="TensorrtExecutionProvider")
    with pytest.raises(ArtefactError, match=r"x\.plan does not exist; run `python -m engines build` again"):
        OrtRunner(PRODUCT, folder, "tensorrt", plan=folder / "x.plan")


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError) as caught:
        OrtRunner(PRODUCT, tmp_path, "cpu")
    assert str(caught.value) == f"{tmp_path / 'product.onnx'} does not exist; run `python -m export` again"


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: bytes(len(whole)),
        lambda whole: b"version https://git-lfs.github.com/spec/v1\nsize 12\n",
    ],
    ids=["empty", "half", "one byte short", "zeros", "text"],
)
def test_a_damaged_file_is_named_with_the_remedy(folder: Path, damage: Any) -> None:
    path = folder / PRODUCT.file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtefactError, match=r"product\.onnx is damaged \(.+\); run `python -m export` again"):
        OrtRunner(PRODUCT, folder, "cpu")


@pytest.mark.parametrize("left", [0, 10, None], ids=["empty", "truncated", "missing"])
def test_damaged_external_data_is_named_with_the_remedy(folder: Path, left: int | None) -> None:
    data = with_external_data(folder)
    whole = data.read_bytes()
    data.unlink()
    if left is not None:
        data.write_bytes(whole[:left])
    with pytest.raises(ArtefactError, match=r"product\.onnx is damaged \(.+\); run `python -m export` again"):
        OrtRunner(PRODUCT, folder, "cpu")


@pytest.mark.parametrize(
    "model", [product_model(operator="Nonsense"), product_model(weights="others")], ids=["operator", "dangling input"]
)
def test_a_graph_that_is_no_graph_is_damaged(folder: Path, model: onnx.ModelProto) -> None:
    (folder / PRODUCT.file).write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="is damaged"):
        OrtRunner(PRODUCT, folder, "cpu")


def test_a_graph_with_other_inputs_than_the_component_is_refused(folder: Path) -> None:
    other = replace(PRODUCT, inputs=(TensorSpec("sample", "float32", ("rows", 3)),))
    with pytest.raises(ArtefactError, match=r"takes \['x'\], pipeline\.json says \['sample'\]; run `python -m export`"):
        OrtRunner(other, folder, "cpu")


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, r"product was fed \[\]; feed exactly \['x'\]"),
        ({"x": np.zeros((2, 3))}, r"'x' is float64\[2, 3\]; feed float32\['rows', 3\] instead"),
        ({"x": np.zeros((2, 5), np.float32)}, r"'x' has shape \[2, 5\]; its dimension 3 must be 3"),
    ],
    ids=["names", "dtype", "shape"],
)
def test_wrong_feeds_are_refused(folder: Path, feeds: dict[str, npt.NDArray[Any]], said: str) -> None:
    with pytest.raises(FeedError, match=said):
        OrtRunner(PRODUCT, folder, "cpu").infer(feeds)


def test_what_the_provider_raises_is_a_provider_error(folder: Path) -> None:
    """The component lets any width through; the graph takes three."""
    loose = replace(PRODUCT, inputs=(TensorSpec("x", "float32", ("rows", "width")),))
    with pytest.raises(ProviderError, match=r"^cpu failed on product: .*dimensions"):
        OrtRunner(loose, folder, "cpu").infer({"x": np.zeros((2, 5), np.float32)})


def test_a_provider_that_cannot_load_a_good_file_is_a_provider_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, options: Any, providers: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(ProviderError, match=r"^cpu cannot load .*product\.onnx: no memory left$"):
        OrtRunner(PRODUCT, folder, "cpu")


def test_a_gpus_provider_that_cannot_load_a_good_file_says_to_choose_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch, running="TensorrtExecutionProvider")

    def refuse(path: Path, options: Any, providers: Any) -> Any:
        raise RuntimeError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(ProviderError, match=r"libnvinfer\.so\.10: cannot open .*; choose another with --provider$"):
        OrtRunner(PRODUCT, folder, "tensorrt")
    assert opened.paths == []


def test_of_errors_that_led_to_one_another_the_cause_is_told() -> None:
    mark = "[ONNXRuntimeError] : 1 : FAIL : "
    frames = f"{mark}Exception during initialization: /src/frame.cc:74 ort::Info::Info(const std::vector<int>&) "
    assert (
        reason(RuntimeError(f"{frames}{mark}tensor.cc:18 Get External data:\n too short")) == "External data: too short"
    )
    assert reason(RuntimeError(f"{mark}No such node.")) == "No such node."
    assert reason(RuntimeError("plain")) == "plain"
    assert reason(RuntimeError()) == "RuntimeError"


def test_weights_that_are_cut_short_are_told_in_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(folder / PRODUCT.file)
    onnx.save_model(
        model, tmp_path / "cut.onnx", save_as_external_data=True, location="cut.onnx.data", size_threshold=0
    )
    (tmp_path / "cut.onnx.data").write_bytes(b"")
    with pytest.raises(
        ArtefactError,
        match=r"cut\.onnx is damaged \(Deserialize tensor w failed. External initializer: [^\n]+\); run `python",
    ):
        OrtRunner(replace(PRODUCT, file="cut.onnx"), tmp_path, "cpu")
    assert capfd.readouterr().err == ""
