"""Triton's own backends: what is written is what Triton's protobuf reads, complete for every component."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engines.component import PipelineSpec
from engines.errors import ArtefactError, PlanError
from engines.manifest import Manifest, Options
from engines.native import (
    NativeModel,
    Word,
    model_name,
    onnxruntime_model,
    pbtxt,
    resolution_models,
    tensorrt_models,
    tensorrt_profiles,
)
from engines.profiles import Rows, Tokens, common_sizes, component_profile, depends_on_resolution
from engines.providers import DEFAULTS, Settings
from tests.made_up_plans import write_plan

COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
TYPES = {"int32": "TYPE_INT32", "float32": "TYPE_FP32"}


def parsed(model: NativeModel) -> Any:
    """The configuration as Triton reads it."""
    return text_format.Parse(model.config, model_config_pb2.ModelConfig())


def parameters(entries: Any) -> dict[str, str]:
    return dict(entries.items())


def check_tensors(config: Any, spec: PipelineSpec, component: str) -> None:
    """Every tensor is there with its type, and with a size for each dimension: Triton completes nothing."""
    ours = spec.component(component)
    for specs, tensors in ((ours.inputs, config.input), (ours.outputs, config.output)):
        assert {t.name: (model_config_pb2.DataType.Name(t.data_type), len(t.dims)) for t in tensors} == {
            s.name: (TYPES[s.dtype], len(s.shape)) for s in specs
        }
        for tensor, one in zip(tensors, specs, strict=True):
            fixed = [dim for dim in one.shape if isinstance(dim, int)]
            assert set(fixed) <= set(tensor.dims)
            assert tensor.dims[0] == -1


def check_warm_up(config: Any) -> None:
    """Triton refuses a warm-up whose inputs are not those of the model."""
    assert config.model_warmup
    dims = {tensor.name: list(tensor.dims) for tensor in config.input}
    for sample in config.model_warmup:
        assert sample.batch_size == 1
        assert set(sample.inputs) == set(dims)
        for name, tensor in sample.inputs.items():
            assert tensor.zero_data
            assert all(size > 0 for size in tensor.dims)
            assert all(asked in (-1, size) for asked, size in zip(dims[name], tensor.dims, strict=True))


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("name", COMPONENTS)
def test_an_exported_file_has_a_complete_configuration(fake_export: Path, name: str, on_gpu: bool) -> None:
    spec = PipelineSpec.read(fake_export)
    model = onnxruntime_model(spec.component(name), spec, fake_export, Settings(threads=3), on_gpu=on_gpu)
    config = parsed(model)
    assert (config.name, config.backend, config.platform) == (name, "onnxruntime", "onnxruntime_onnx")
    assert (config.max_batch_size, config.default_model_filename) == (0, f"{name}.onnx")
    assert model.files == fake_export
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    check_tensors(config, spec, name)
    check_warm_up(config)
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == ((group.KIND_GPU, [0]) if on_gpu else (group.KIND_CPU, []))


def test_an_exported_file_is_warmed_up_at_every_resolution(fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    config = parsed(onnxruntime_model(spec.component("unet"), spec, fake_export, DEFAULTS, on_gpu=False))
    assert [list(s.inputs["sample"].dims) for s in config.model_warmup] == [[2, 4, 8, 8], [2, 4, 16, 16]]
    text = parsed(onnxruntime_model(spec.component("text_encoder"), spec, fake_export, DEFAULTS, on_gpu=False))
    assert len(text.model_warmup) == 1


def test_a_gpu_gets_the_accelerators_with_onnx_runtimes_options(fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    settings = Settings(device=1, cuda_graphs=True, cache=Path("/cache"))
    config = parsed(onnxruntime_model(spec.component("unet"), spec, fake_export, settings, on_gpu=True))
    tensorrt, cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (tensorrt.name, cuda.name) == ("tensorrt", "cuda")
    found = parameters(tensorrt.parameters)
    assert found["trt_engine_cache_path"] == "/cache/tensorrt"
    assert found["trt_cuda_graph_enable"] == "1"
    assert found["trt_profile_min_shapes"].startswith("sample:1x4x8x8,timestep:1,")
    assert "precision_mode" not in found
    assert "device_id" not in {**found, **parameters(cuda.parameters)}
    assert list(config.instance_group[0].gpus) == [1]


def test_a_cpu_gets_openvino(fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    config = parsed(onnxruntime_model(spec.component("unet"), spec, fake_export, DEFAULTS, on_gpu=False))
    (accelerator,) = config.optimization.execution_accelerators.cpu_execution_accelerator
    assert accelerator.name == "openvino"


@pytest.fixture
def built(tmp_path: Path, fake_export: Path) -> Path:
    """An export folder with made-up plans of every component for two kinds of GPU."""
    spec = PipelineSpec.read(fake_export)
    spec.write(tmp_path)
    (tmp_path / "plans").mkdir()
    for name in COMPONENTS:
        component = spec.component(name)
        for resolution in spec.resolutions if depends_on_resolution(component) else (None,):
            for capability in ((8, 9), (9, 0)):
                write_plan(tmp_path, spec, name, resolution, capability)
    return tmp_path


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", COMPONENTS)
def test_plans_have_a_complete_configuration_for_each_resolution(built: Path, name: str, graphs: bool) -> None:
    spec = PipelineSpec.read(built)
    models = tensorrt_models(spec.component(name), spec, built, Settings(cuda_graphs=graphs, device=2))
    expected = [name] if name == "text_encoder" else [f"{name}_64x64", f"{name}_128x128"]
    assert [model.name for model in models] == expected
    for model in models:
        config = parsed(model)
        assert (config.name, config.backend, config.platform) == (model.name, "tensorrt", "tensorrt_plan")
        assert model.files == built / "plans"
        check_tensors(config, spec, name)
        check_warm_up(config)
        (group,) = config.instance_group
        assert (list(group.profile), list(group.gpus), group.kind) == (["0"], [2], group.KIND_GPU)
        assert config.optimization.cuda.graphs is graphs
        assert bool(config.optimization.cuda.graph_spec) is graphs


def test_each_kind_of_gpu_has_its_plan(built: Path) -> None:
    spec = PipelineSpec.read(built)
    config = parsed(tensorrt_models(spec.component("unet"), spec, built, DEFAULTS)[0])
    files = dict(config.cc_model_filenames.items())
    assert sorted(files) == ["8.9", "9.0"]
    assert config.default_model_filename in files.values()
    assert all((built / "plans" / file).is_file() for file in files.values())


def test_graphs_are_recorded_for_the_rows_that_warm_up_runs(built: Path) -> None:
    """A batch size of 0 is what Triton asks of a model without a batch dimension of its own."""
    spec = PipelineSpec.read(built)
    config = parsed(tensorrt_models(spec.component("unet"), spec, built, Settings(cuda_graphs=True))[0])
    recorded = [list(graph.input["sample"].dim) for graph in config.optimization.cuda.graph_spec]
    assert recorded == [[1, 4, 8, 8], [2, 4, 8, 8], [4, 4, 8, 8], [8, 4, 8, 8], [12, 4, 8, 8]]
    assert recorded == [list(sample.inputs["sample"].dims) for sample in config.model_warmup]
    assert {graph.batch_size for graph in config.optimization.cuda.graph_spec} == {0}


def test_a_plans_inputs_have_the_sizes_of_its_profile(built: Path) -> None:
    spec = PipelineSpec.read(built)
    config = parsed(tensorrt_models(spec.component("unet"), spec, built, DEFAULTS)[1])
    assert {i.name: list(i.dims) for i in config.input} == {
        "sample": [-1, 4, 16, 16],
        "timestep": [-1],
        "encoder_hidden_states": [-1, -1, 8],
    }


def test_a_resolution_without_a_plan_is_named_with_the_remedy(built: Path) -> None:
    spec = PipelineSpec.read(built)
    for file in (built / "plans").glob("unet-128x128-*"):
        file.unlink()
    with pytest.raises(PlanError, match=r"has no TensorRT plan of unet_128x128; build it with `python -m engines"):
        tensorrt_models(spec.component("unet"), spec, built, DEFAULTS)


def test_a_plan_that_was_tampered_with_is_refused(built: Path) -> None:
    spec = PipelineSpec.read(built)
    plan = next((built / "plans").glob("unet-64x64-*.plan"))
    plan.write_bytes(plan.read_bytes()[::-1])
    with pytest.raises(PlanError, match="tampered"):
        tensorrt_models(spec.component("unet"), spec, built, DEFAULTS)


def test_models_are_found_by_the_size_of_a_latent(fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    assert resolution_models(spec.component("unet"), spec) == {(8, 8): "unet_64x64", (16, 16): "unet_128x128"}
    assert resolution_models(spec.component("text_encoder"), spec) == {}
    assert model_name("text_encoder", None) == "text_encoder"


def test_texts_are_quoted_and_words_are_not() -> None:
    text = pbtxt({"name": 'a "b"', "kind": Word("KIND_CPU"), "flag": True, "dims": [1, -1], "in": {"x": 0}})
    assert text.splitlines() == [
        'name: "a \\"b\\""',
        "kind: KIND_CPU",
        "flag: true",
        "dims: 1",
        "dims: -1",
        "in {",
        "  x: 0",
        "}",
    ]


@pytest.mark.parametrize("text", ["plain", 'a "quoted" one', "back\\slash", "größe"])
def test_texts_come_back_as_they_were(text: str) -> None:
    config = text_format.Parse(pbtxt({"name": text}), model_config_pb2.ModelConfig())
    assert config.name == text


def test_what_no_field_has_is_refused() -> None:
    with pytest.raises(ArtefactError, match=r"1\.5 is neither"):
        pbtxt({"name": 1.5})


def test_what_an_earlier_export_left_is_passed_over(built: Path) -> None:
    spec = PipelineSpec.read(built)
    before = [model.config for model in tensorrt_models(spec.component("unet"), spec, built, DEFAULTS)]
    earlier = replace(spec, components={**spec.components, "unet": replace(spec.components["unet"], sha256="0" * 64)})
    write_plan(built, earlier, "unet", (64, 64), (8, 9))
    assert [model.config for model in tensorrt_models(spec.component("unet"), spec, built, DEFAULTS)] == before


def test_of_several_plans_for_a_gpu_the_one_with_the_most_rows_serves(built: Path) -> None:
    """The rows that all of the model's plans take are warmed up: another GPU may have fewer."""
    spec = PipelineSpec.read(built)
    for rows, capability in ((Rows(1, 2, 2), (8, 9)), (Rows(1, 4, 32), (8, 9)), (Rows(1, 4, 16), (12, 0))):
        write_plan(built, spec, "unet", (64, 64), capability, rows=rows)
    config = parsed(tensorrt_models(spec.component("unet"), spec, built, DEFAULTS)[0])
    most = {
        capability: Manifest.read((built / "plans" / file).with_suffix(".json")).profile["sample"].maximum[0]
        for capability, file in config.cc_model_filenames.items()
    }
    assert most == {"8.9": 32, "9.0": 12, "12.0": 16}
    assert [sample.inputs["sample"].dims[0] for sample in config.model_warmup] == [1, 2, 4, 8, 12]


def test_a_plan_without_its_weights_is_refused(built: Path) -> None:
    spec = PipelineSpec.read(built)
    write_plan(built, spec, "unet", (64, 64), (12, 0), options=Options(stripped=True))
    with pytest.raises(PlanError, match=r"was built with --strip, and neither .*build it with .* without --strip"):
        tensorrt_models(spec.component("unet"), spec, built, DEFAULTS)


def test_of_plans_with_as_many_rows_the_one_for_longer_prompts_is_served(built: Path) -> None:
    spec = PipelineSpec.read(built)
    unet = spec.component("unet")
    taken = common_sizes(unet, tensorrt_profiles(unet, spec, built))
    assert taken == {"rows": (1, 12), "tokens": (77, 616)}
    for tokens in (Tokens(77, 77, 77), Tokens(77, 77, 231), Tokens(77, 154, 231)):
        write_plan(built, spec, "unet", (64, 64), (8, 9), tokens=tokens)
    assert common_sizes(unet, tensorrt_profiles(unet, spec, built)) == taken


def test_an_exported_file_on_a_gpu_is_compiled_for_the_deployments_rows(fake_export: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    unet = spec.component("unet")
    profile = component_profile(unet, (8, 8), Rows(1, 8, 24))
    made = onnxruntime_model(unet, spec, fake_export, Settings(profiles=(profile,)), on_gpu=True)
    tensorrt, _ = parsed(made).optimization.execution_accelerators.gpu_execution_accelerator
    assert parameters(tensorrt.parameters)["trt_profile_max_shapes"].startswith("sample:24x4x8x8,")
