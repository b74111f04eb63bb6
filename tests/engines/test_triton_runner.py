"""Components that are Triton models, with a stand-in for the module that Triton gives to its Python models."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.component import Component, TensorSpec
from engines.errors import FeedError, ProviderError
from engines.triton_runner import TritonRunner

MOMENTS = Component(
    "vae_encoder",
    "vae_encoder.onnx",
    (TensorSpec("image", "float32", ("rows", 3)), TensorSpec("mask", "float32", ("rows",))),
    (TensorSpec("mean", "float32", ("rows",)), TensorSpec("deviation", "float32", ("rows",))),
)
FEEDS = {"image": np.ones((2, 3), np.float32), "mask": np.array([2, 3], np.float32)}


class StandIn(ModuleType):
    """Answers a request with the sums and the doubles of `mask`, in memory that it overwrites when it likes."""

    def __init__(self) -> None:
        super().__init__("triton_python_backend_utils")
        self.requests: list[SimpleNamespace] = []
        self.failure: str | None = None
        self.memory = {"mean": np.zeros(2, np.float32), "deviation": np.zeros(2, np.float32)}

    def Tensor(self, name: str, array: npt.NDArray[Any]) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(name=name, array=array)

    def InferenceRequest(self, **fields: Any) -> SimpleNamespace:  # noqa: N802
        request = SimpleNamespace(**fields)
        request.exec = lambda: self._answer(request)
        self.requests.append(request)
        return request

    def get_output_tensor_by_name(self, response: SimpleNamespace, name: str) -> SimpleNamespace:
        return SimpleNamespace(as_numpy=lambda: response.outputs[name])

    def _answer(self, request: SimpleNamespace) -> SimpleNamespace:
        if self.failure is not None:
            error = SimpleNamespace(message=lambda: self.failure)
            return SimpleNamespace(has_error=lambda: True, error=lambda: error, outputs={})
        mask = {tensor.name: tensor.array for tensor in request.inputs}["mask"]
        self.memory["mean"][:] = mask + 1
        self.memory["deviation"][:] = mask * 2
        return SimpleNamespace(has_error=lambda: False, outputs=self.memory)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_the_model_is_called_as_the_component_with_all_its_tensors(triton: StandIn) -> None:
    runner = TritonRunner(MOMENTS)
    outputs = runner.infer(FEEDS)
    (request,) = triton.requests
    assert request.model_name == "vae_encoder"
    assert request.requested_output_names == ["mean", "deviation"]
    assert {tensor.name: tensor.array is FEEDS[tensor.name] for tensor in request.inputs} == {
        "image": True,
        "mask": True,
    }
    assert runner.provider == "triton"
    assert {name: array.tolist() for name, array in outputs.items()} == {"mean": [3, 4], "deviation": [4, 6]}


def test_a_resolution_may_have_a_model_of_its_own(triton: StandIn) -> None:
    image = (TensorSpec("image", "float32", ("rows", "height", "width")), *MOMENTS.inputs[1:])
    component = Component("vae_encoder", "", image, MOMENTS.outputs)
    runner = TritonRunner(component, models={(3, 4): "vae_encoder_24x32"})
    for width in (4, 5):
        runner.infer({**FEEDS, "image": np.ones((2, 3, width), np.float32)})
    assert [request.model_name for request in triton.requests] == ["vae_encoder_24x32", "vae_encoder"]


def test_a_further_checkpoints_model_has_another_name(triton: StandIn) -> None:
    runner = TritonRunner(MOMENTS, "other-vae_encoder")
    assert runner.infer(FEEDS)["mean"].tolist() == [3, 4]
    triton.failure = "out of memory"
    with pytest.raises(ProviderError, match=r"^Triton model other-vae_encoder failed: out of memory$"):
        runner.infer(FEEDS)
    assert [request.model_name for request in triton.requests] == ["other-vae_encoder"] * 2


def test_outputs_outlive_the_response(triton: StandIn) -> None:
    outputs = TritonRunner(MOMENTS).infer(FEEDS)
    triton.memory["mean"][:] = -1
    assert outputs["mean"].tolist() == [3, 4]


def test_the_models_error_is_passed_on(triton: StandIn) -> None:
    triton.failure = "out of memory"
    with pytest.raises(ProviderError, match=r"^Triton model vae_encoder failed: out of memory$"):
        TritonRunner(MOMENTS).infer(FEEDS)


def test_wrong_feeds_never_reach_triton(triton: StandIn) -> None:
    with pytest.raises(FeedError, match="'image' is float64"):
        TritonRunner(MOMENTS).infer({**FEEDS, "image": np.ones((2, 3))})
    assert triton.requests == []


def test_outside_triton_there_is_no_such_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", None)
    with pytest.raises(ModuleNotFoundError, match="triton_python_backend_utils"):
        TritonRunner(MOMENTS)
