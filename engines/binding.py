"""ONNX Runtime calls whose tensors stay on the device: one set of addresses for each shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from engines.component import Arrays, TensorSpec, resolve


@dataclass(slots=True)
class Addresses:
    """The tensors of calls of one shape; what was last fed is kept to see whether it comes again."""

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    run_options: Any
    last: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


class BoundSession:
    """A session whose inputs and outputs have fixed addresses, which CUDA graphs need.

    An array that cannot be written to and is fed again, such as the embeddings of jobs that go on, is not copied again.

    Args:
        session: an ONNX Runtime session.
        outputs: all of its outputs.
        device: where its tensors live: name and index.
        graphs: whether the provider records CUDA graphs; each shape gets one of its own.
    """

    def __init__(self, session: Any, outputs: Sequence[TensorSpec], device: tuple[str, int], *, graphs: bool) -> None:
        self._session = session
        self._outputs = tuple(outputs)
        self._device = device
        self._graphs = graphs
        self._addresses: dict[tuple[tuple[int, ...], ...], Addresses] = {}

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], sizes: Mapping[str, int]) -> Arrays:
        """Outputs by name.

        Args:
            sizes: of every symbol of the outputs' shapes.
        """
        key = tuple(feeds[name].shape for name in sorted(feeds))
        if key not in self._addresses:
            self._addresses[key] = self._allocate(feeds, sizes)
        held = self._addresses[key]
        for name, array in feeds.items():
            if array.flags.writeable or held.last.get(name) is not array:
                held.inputs[name].update_inplace(np.ascontiguousarray(array))
                held.last[name] = array
        self._session.run_with_iobinding(held.binding, held.run_options)
        # Where the tensor is in the host's memory, `numpy()` is a view that the next call would write to.
        return {name: np.array(value.numpy()) for name, value in held.outputs.items()}

    def _allocate(self, feeds: Mapping[str, npt.NDArray[Any]], sizes: Mapping[str, int]) -> Addresses:
        def empty(shape: Sequence[int], dtype: Any) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, *self._device)

        binding = self._session.io_binding()
        inputs = {name: empty(array.shape, array.dtype) for name, array in feeds.items()}
        outputs = {s.name: empty([resolve(d, sizes) for d in s.shape], np.dtype(s.dtype)) for s in self._outputs}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        options = ort.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(len(self._addresses) + 1))
        return Addresses(binding, inputs, outputs, options)
