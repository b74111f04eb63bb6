"""Scales and shifts of channels as depthwise convolutions: which are rewritten, and that they compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset14 as ops

from engines.channel_affine import fuse_channel_affine
from engines.component import PipelineSpec
from engines.openvino_runner import OpenVinoRunner
from engines.picture import Case, feeds
from engines.providers import Settings

SCALE = np.array([2.0, -3.0, 0.5], np.float32).reshape(3, 1, 1)
SHIFT = np.array([0.1, 0.2, 0.3], np.float32).reshape(1, 3, 1, 1)
PICTURES = (-1, 3, -1, -1)


def parameter(shape: tuple[int, ...] = PICTURES) -> Any:
    return ops.parameter(ov.PartialShape(list(shape)), np.float32)


def affine(x: Any, scale: Any = SCALE, shift: Any = SHIFT) -> Any:
    return ops.add(ops.multiply(x, ops.constant(scale)), ops.constant(shift))


def computed(model: Any, *inputs: Any) -> list[Any]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(value) for value in compiled(list(inputs)).values()]


@pytest.mark.parametrize("rows", [1, 3])
def test_the_rewritten_sum_is_the_same(rows: int) -> None:
    x = parameter()
    model = ov.Model([ops.swish(affine(x))], [x])
    pixels = np.random.default_rng(rows).standard_normal((rows, 3, 5, 7)).astype(np.float32)
    (before,) = computed(model, pixels)
    assert fuse_channel_affine(model) == 1
    assert [node.get_type_name() for node in model.get_ordered_ops()].count("GroupConvolution") == 1
    (after,) = computed(model, pixels)
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_constants_of_half_precision_stay_so() -> None:
    x = ops.parameter(ov.PartialShape(list(PICTURES)), np.float16)
    model = ov.Model([affine(x, SCALE.astype(np.float16), SHIFT.astype(np.float16))], [x])
    assert fuse_channel_affine(model) == 1
    assert model.outputs[0].get_element_type() == ov.Type.f16


def _of_tokens() -> Any:
    x = parameter((-1, 3, 3))
    return ov.Model([affine(x, SCALE.reshape(3, 1), SHIFT.reshape(1, 3, 1))], [x])


def _of_any_channels() -> Any:
    x = parameter((-1, -1, -1, -1))
    return ov.Model([affine(x)], [x])


def _one_for_all() -> Any:
    x = parameter()
    return ov.Model([affine(x, np.float32(2).reshape(1, 1, 1), np.float32(1).reshape(1, 1, 1))], [x])


def _per_row() -> Any:
    x, scale = parameter(), parameter((-1, 3, 1, 1))
    return ov.Model([ops.add(ops.multiply(x, scale), ops.constant(SHIFT))], [x, scale])


def _product_is_used_again() -> Any:
    x = parameter()
    product = ops.multiply(x, ops.constant(SCALE))
    return ov.Model([ops.add(product, ops.constant(SHIFT)), ops.relu(product)], [x])


def _sum_of_two() -> Any:
    x, y = parameter(), parameter()
    return ov.Model([ops.add(ops.multiply(x, ops.constant(SCALE)), y)], [x, y])


@pytest.mark.parametrize(
    "make", [_of_tokens, _of_any_channels, _one_for_all, _per_row, _product_is_used_again, _sum_of_two]
)
def test_anything_else_stays_as_it_is(make: Any) -> None:
    model = make()
    before = [node.get_name() for node in model.get_ordered_ops()]
    assert fuse_channel_affine(model) == 0
    assert [node.get_name() for node in model.get_ordered_ops()] == before


@pytest.mark.parametrize("name", ["unet", "vae_decoder", "vae_encoder"])
def test_a_component_computes_the_same(name: str, tiny_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PipelineSpec.read(tiny_export)
    component = spec.component(name)
    fed = feeds(component, spec, Case((64, 64), 0, 2), 2)
    counts = []

    def counted(model: Any) -> None:
        counts.append(fuse_channel_affine(model))

    monkeypatch.setattr("engines.openvino_runner.fuse_channel_affine", counted)
    found = OpenVinoRunner(component, tiny_export, Settings(precision="f32")).infer(fed)
    monkeypatch.setattr("engines.openvino_runner.fuse_channel_affine", lambda model: 0)
    expected = OpenVinoRunner(component, tiny_export, Settings(precision="f32")).infer(fed)
    assert counts[0] > 0
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, rtol=1e-4, atol=1e-5 * float(np.abs(values).max()))
