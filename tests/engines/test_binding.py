"""Tensors at fixed addresses, on the CPU's: what is copied, what is not, and what comes out."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from engines.binding import BoundSession
from engines.component import TensorSpec

OUTPUTS = (TensorSpec("y", "float32", ("rows", 2)),)


@pytest.fixture
def session(tmp_path: Path) -> Any:
    """y = x + c"""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in "xcy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "sum", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, tmp_path / "sum.onnx")
    return ort.InferenceSession(tmp_path / "sum.onnx", providers=["CPUExecutionProvider"])


def full(rows: int, value: float) -> Any:
    return np.full((rows, 2), value, np.float32)


def fixed(array: Any) -> Any:
    array.flags.writeable = False
    return array


def test_calls_of_all_shapes_give_the_sum(session: Any) -> None:
    bound = BoundSession(session, OUTPUTS, ("cpu", 0), graphs=False)
    for rows, value in ((1, 1.0), (3, 2.0), (1, 5.0), (3, 7.0)):
        found = bound.run({"x": full(rows, value), "c": full(rows, 10)}, {"rows": rows})
        np.testing.assert_array_equal(found["y"], full(rows, value + 10))


def test_what_a_call_gave_outlives_the_next_call(session: Any) -> None:
    bound = BoundSession(session, OUTPUTS, ("cpu", 0), graphs=False)
    first = bound.run({"x": full(1, 1), "c": full(1, 0)}, {"rows": 1})["y"]
    bound.run({"x": full(1, 2), "c": full(1, 0)}, {"rows": 1})
    np.testing.assert_array_equal(first, full(1, 1))


def test_only_a_constant_that_comes_again_is_not_copied(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Any] = []
    real = ort.OrtValue.update_inplace

    def update(self: Any, data: Any) -> None:
        copied.append(data)
        real(self, data)

    monkeypatch.setattr(ort.OrtValue, "update_inplace", update)
    bound = BoundSession(session, OUTPUTS, ("cpu", 0), graphs=False)
    constant, other, x = fixed(full(1, 10)), fixed(full(1, 20)), full(1, 1)
    for c, expected in ((constant, 11), (constant, 12), (other, 23), (constant, 14)):
        found = bound.run({"x": x, "c": c}, {"rows": 1})
        np.testing.assert_array_equal(found["y"], full(1, expected))
        x += 1
    assert [float(array[0, 0]) for array in copied if array is not x] == [10, 20, 10]
    assert sum(array is x for array in copied) == 4


def test_each_shape_has_a_graph_of_its_own(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[tuple[str, str]] = []
    real = ort.RunOptions.add_run_config_entry

    class Options(ort.RunOptions):  # type: ignore[misc]
        def add_run_config_entry(self, key: str, value: str) -> None:
            numbers.append((key, value))
            real(self, key, value)

    monkeypatch.setattr("onnxruntime.RunOptions", Options)
    bound = BoundSession(session, OUTPUTS, ("cpu", 0), graphs=True)
    for rows in (1, 2, 1, 2):
        bound.run({"x": full(rows, 1), "c": full(rows, 1)}, {"rows": rows})
    assert numbers == [("gpu_graph_id", "1"), ("gpu_graph_id", "2")]
