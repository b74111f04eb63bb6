"""Traced graphs compute what torch does, for other sizes than they were traced with, one timestep per row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from engines.catalog import SIDE_MULTIPLE, components_of
from engines.component import Component, PipelineSpec, TensorSpec
from engines.ort_runner import OrtRunner
from engines.precision import PrecisionPlan
from engines.providers import Settings
from export import to_onnx
from export.checkpoint import Checkpoint
from export.to_onnx import EXAMPLE, OPSET, example_inputs, export_onnx
from export.wrappers import load_component

TOLERANCES = {"text_encoder": 1e-4, "unet": 1e-3, "vae_encoder": 1e-4, "vae_decoder": 1e-4}


class Exported:
    """Runs the components of an export, and the same in torch."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        spec, trained = PipelineSpec.read(folder), Checkpoint.open(str(checkpoint))
        self.components = spec.components
        self._runners = {name: OrtRunner(c, folder, "cpu", Settings(threads=1)) for name, c in spec.components.items()}
        self._networks = {name: load_component(trained, name) for name in spec.components}

    def run(self, name: str, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        (output,) = self._runners[name].infer(feeds).values()
        return output

    def torch(self, name: str, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        with torch.no_grad():
            output = self._networks[name](**{key: torch.from_numpy(array) for key, array in feeds.items()})
        assert isinstance(output, torch.Tensor)
        return output.numpy()

    def feeds(self, name: str, rows: int, side: int = 8, *, tokens: int = 77) -> dict[str, npt.NDArray[Any]]:
        sizes = {"rows": rows, "tokens": tokens, "height": side, "width": side}
        inputs = example_inputs(self.components[name].inputs, sizes, seed=rows)
        return {key: tensor.numpy() for key, tensor in inputs.items()}


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tiny_export: Path) -> Exported:
    return Exported(tiny_checkpoint, tiny_export)


@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", TOLERANCES)
def test_components_match_torch_at_every_resolution_and_row_count(
    exported: Exported, name: str, rows: int, side: int
) -> None:
    feeds = exported.feeds(name, rows, side)
    expected = exported.torch(name, feeds)
    assert expected.std() > 10 * TOLERANCES[name]
    np.testing.assert_allclose(exported.run(name, feeds), expected, rtol=0, atol=TOLERANCES[name])


@pytest.mark.parametrize("tokens", [1, 77, 154])
def test_the_unet_takes_prompts_of_any_length(exported: Exported, tokens: int) -> None:
    feeds = exported.feeds("unet", 2, tokens=tokens)
    np.testing.assert_allclose(exported.run("unet", feeds), exported.torch("unet", feeds), rtol=0, atol=1e-3)


def test_timesteps_are_per_row(exported: Exported) -> None:
    one = exported.feeds("unet", 1)
    feeds = {name: np.repeat(array, 2, axis=0) for name, array in one.items()}
    feeds["timestep"] = np.array([1, 981], np.float32)
    together = exported.run("unet", feeds)
    alone = [exported.run("unet", {**one, "timestep": feeds["timestep"][row : row + 1]}) for row in range(2)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_fractions_of_a_timestep_count(exported: Exported) -> None:
    feeds = exported.feeds("unet", 1)
    whole, fraction = (exported.run("unet", {**feeds, "timestep": np.array([t], np.float32)}) for t in (500, 500.5))
    assert np.abs(whole - fraction).max() > 1e-5


@pytest.mark.parametrize("name", TOLERANCES)
def test_rows_do_not_influence_each_other(exported: Exported, name: str) -> None:
    feeds = exported.feeds(name, 3)
    together = exported.run(name, feeds)
    for row in range(3):
        alone = exported.run(name, {key: array[row : row + 1] for key, array in feeds.items()})
        np.testing.assert_allclose(together[row : row + 1], alone, rtol=0, atol=2e-5)


def test_the_vae_encoder_gives_the_mean_and_the_variance_of_a_picture(
    exported: Exported, tiny_checkpoint: Path
) -> None:
    feeds = exported.feeds("vae_encoder", 1)
    moments = exported.run("vae_encoder", feeds)
    with torch.no_grad():
        posterior = (
            Checkpoint.open(str(tiny_checkpoint)).network("vae").encode(torch.from_numpy(feeds["image"])).latent_dist
        )
    np.testing.assert_allclose(moments[:, :4], posterior.mean, rtol=0, atol=1e-4)
    np.testing.assert_allclose(moments[:, 4:], posterior.logvar, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TOLERANCES)
def test_graphs_have_the_tensors_of_the_component(exported: Exported, tiny_export: Path, name: str) -> None:
    graph = onnx.load(tiny_export / f"{name}.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET["fp32"])]
    kinds = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT32: "int32"}
    component = exported.components[name]
    for ours, theirs in ((component.inputs, graph.graph.input), (component.outputs, graph.graph.output)):
        types = [(value.name, value.type.tensor_type) for value in theirs]
        assert [(n, kinds[t.elem_type], len(t.shape.dim)) for n, t in types] == [
            (spec.name, spec.dtype, len(spec.shape)) for spec in ours
        ]
        fixed = [[d.dim_value for d in t.shape.dim if not d.dim_param] for _, t in types]
        assert fixed == [[d for d in spec.shape if isinstance(d, int)] for spec in ours]


def test_examples_fit_the_component_and_follow_from_the_seed(exported: Exported) -> None:
    for component in exported.components.values():
        inputs = {name: tensor.numpy() for name, tensor in example_inputs(component.inputs, EXAMPLE, seed=1).items()}
        bound = component.bind(inputs)
        assert bound.items() <= EXAMPLE.items()
        again = example_inputs(component.inputs, EXAMPLE, seed=1)
        other = example_inputs(component.inputs, EXAMPLE, seed=2)
        for name, array in inputs.items():
            assert np.array_equal(array, again[name])
            assert not np.array_equal(array, other[name])


def test_examples_are_in_range() -> None:
    specs = (TensorSpec("input_ids", "int32", ("rows",)), TensorSpec("timestep", "float32", ("rows",)))
    inputs = example_inputs(specs, {"rows": 5000})
    assert (0, 400) <= (int(inputs["input_ids"].min()), int(inputs["input_ids"].max()) + 1) <= (5, 400)
    assert 0 <= float(inputs["timestep"].min()) < 1
    assert 990 < float(inputs["timestep"].max()) < 999


def test_the_traced_example_cannot_be_taken_for_constants() -> None:
    assert 1 not in EXAMPLE.values()
    assert len(set(EXAMPLE.values())) == len(EXAMPLE)
    assert EXAMPLE["height"] % SIDE_MULTIPLE == EXAMPLE["width"] % SIDE_MULTIPLE == 0


class Shift(nn.Module):
    """Twice the picture, plus a weight per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3000.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * 2 + self.weight[:3, None, None]


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["beside", "within"])
def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(to_onnx, "EXTERNAL_DATA_BYTES", limit)
    inputs = (TensorSpec("image", "float32", ("rows", 3, "8*height", "8*width")),)
    outputs = (TensorSpec("shifted", "float32", ("rows", 3, "8*height", "8*width")),)
    export_onnx(Shift(), inputs, outputs, tmp_path / "shift.onnx", PrecisionPlan("fp32"))
    assert (tmp_path / "shift.onnx.data").exists() is (limit == 0)
    runner = OrtRunner(Component("shift", "shift.onnx", inputs, outputs), tmp_path, "cpu", Settings(threads=1))
    image = np.ones((1, 3, 64, 128), np.float32)
    expected = image * 2 + np.arange(3, dtype=np.float32)[:, None, None]
    np.testing.assert_array_equal(runner.infer({"image": image})["shifted"], expected)


def test_every_component_of_the_catalog_has_a_network(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    for name in components_of(checkpoint.family, checkpoint.task, checkpoint.widths):
        assert not load_component(checkpoint, name).training
