"""Components that are Triton models of their own, reached from a Python model by business-logic scripting (BLS)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from engines.component import Arrays, Component
from engines.errors import ProviderError


class TritonRunner:
    """Runs a component as a Triton model. Works only inside a Triton Python model's process.

    Args:
        name: of the model; by default the component's.
        models: the model for latents of (height, width), where each has its own.
    """

    provider = "triton"

    def __init__(
        self, component: Component, name: str = "", models: Mapping[tuple[int, int], str] | None = None
    ) -> None:
        self.component = component
        self._name = name or component.name
        self._models = dict(models or {})
        self._triton: Any = importlib.import_module("triton_python_backend_utils")

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        sizes = self.component.bind(feeds)
        model = self._models.get((sizes.get("height", 0), sizes.get("width", 0)), self._name)
        names = [spec.name for spec in self.component.outputs]
        request = self._triton.InferenceRequest(
            model_name=model,
            inputs=[self._triton.Tensor(name, array) for name, array in feeds.items()],
            requested_output_names=names,
        )
        response = request.exec()
        if response.has_error():
            raise ProviderError(f"Triton model {model} failed: {response.error().message()}")
        # The response's memory goes back to Triton with the response, hence the copies.
        return {n: self._triton.get_output_tensor_by_name(response, n).as_numpy().copy() for n in names}
