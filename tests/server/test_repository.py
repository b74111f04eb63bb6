"""The Triton model repository: committed files, and what a deployment writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engines.catalog import Widths, components_of
from engines.component import Component, PipelineSpec
from engines.errors import PlanError
from server.config import COMPONENTS, ServerConfig
from server.fields import CANCEL, FIELDS
from server.repository import FACE, MODELS, STREAM, component_config, deployed_models, request_config, write_repository
from server.sampler_names import SAMPLERS, SCHEDULES


def parsed(text: str) -> Any:
    """The configuration as Triton reads it."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize(("name", "decoupled"), [(STREAM, True), (FACE, False)])
def test_committed_configuration_follows_from_the_fields(name: str, decoupled: bool) -> None:
    committed = (MODELS / name / "config.pbtxt").read_text(encoding="utf-8")
    assert committed == request_config(name, decoupled=decoupled), "run `python -m server repository`"


@pytest.mark.parametrize(("name", "decoupled"), [(STREAM, True), (FACE, False)])
def test_every_field_is_an_optional_input(name: str, decoupled: bool) -> None:
    config = parsed(request_config(name, decoupled=decoupled))
    types = {field.name: f"TYPE_{field.datatype}" for field in (*FIELDS, CANCEL)}
    assert {i.name: model_config_pb2.DataType.Name(i.data_type) for i in config.input} == types
    dims = {field.name: [-1] * (field.shape.count(",") + 1) for field in (*FIELDS, CANCEL)}
    assert {i.name: list(i.dims) for i in config.input} == dims
    assert {len(dims[name]) for name in ("prompt", "init_image", "mask_pixels", "depth_map", "init_pixels")} == {
        1,
        2,
        3,
    }
    assert all(i.optional for i in config.input)
    assert {o.name for o in config.output} >= {"images", "metadata"}
    assert config.model_transaction_policy.decoupled is decoupled
    assert ("progress" in {o.name for o in config.output}) is decoupled


@pytest.mark.parametrize("name", [STREAM, FACE])
def test_clients_can_read_the_samplers_and_schedules(name: str) -> None:
    config = parsed((MODELS / name / "config.pbtxt").read_text(encoding="utf-8"))
    samplers = {sampler["name"]: sampler for sampler in json.loads(config.parameters["samplers"].string_value)}
    assert list(samplers) == [sampler.name for sampler in SAMPLERS]
    assert samplers["euler_ancestral"]["aliases"] == ["Euler a"]
    assert samplers["euler_ancestral"]["options"] == ["eta"]
    assert samplers["dpmpp_2m"]["diffusers"] == "DPMSolverMultistepScheduler"
    assert (samplers["pndm"]["schedules"], samplers["pndm"]["calls"]) == (False, "n + 1")
    assert json.loads(config.parameters["schedules"].string_value) == list(SCHEDULES)


@pytest.mark.parametrize("name", [STREAM, FACE, *COMPONENTS])
def test_every_model_is_a_valid_python_model(name: str) -> None:
    config = parsed((MODELS / name / "config.pbtxt").read_text(encoding="utf-8"))
    assert config.name == name
    assert config.backend == "python"
    assert config.max_batch_size == 0
    assert (MODELS / name / "1" / "model.py").is_file()


@pytest.mark.parametrize("name", COMPONENTS)
def test_committed_components_are_what_is_generated_for_stable_diffusion(name: str) -> None:
    widths = Widths(77, context_width=768, latent_channels=4, unet_channels=4, downscale=8, depth_side=384)
    found = components_of("sd1", "depth", widths) | components_of("sd1", "text_to_image", widths)
    generated = component_config(name, Component(name, "", *found[name]))
    assert parsed((MODELS / name / "config.pbtxt").read_text(encoding="utf-8")) == parsed(generated)


def test_component_models_have_the_tensors_of_the_checkpoint(fake_export: Path, tmp_path: Path) -> None:
    types = {"int32": "TYPE_INT32", "float32": "TYPE_FP32"}
    spec = PipelineSpec.read(fake_export)
    write_repository(ServerConfig(model=fake_export, unet="triton"), tmp_path)
    for name, component in spec.components.items():
        config = parsed((tmp_path / name / "config.pbtxt").read_text(encoding="utf-8"))
        for ours, theirs in ((component.inputs, config.input), (component.outputs, config.output)):
            found = {t.name: (model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in theirs}
            sizes = {t.name: [dim if isinstance(dim, int) else -1 for dim in t.shape] for t in ours}
            assert found == {t.name: (types[t.dtype], sizes[t.name]) for t in ours}


def test_components_in_tritons_own_backend_are_links_to_the_export(fake_export: Path, tmp_path: Path) -> None:
    config = ServerConfig(model=fake_export, backend="onnxruntime", unet="triton", vae_decoder="in_process")
    placed = ("text_encoder", "unet", "vae_encoder")
    write_repository(config, tmp_path)
    assert deployed_models(config) == [STREAM, FACE]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([STREAM, FACE, *placed])
    for name in placed:
        written = parsed((tmp_path / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert (written.name, written.backend) == (name, "onnxruntime")
        assert (tmp_path / name / "1").resolve() == fake_export.resolve()


def test_plans_that_are_not_there_are_missed_before_the_server_starts(fake_export: Path, tmp_path: Path) -> None:
    config = ServerConfig(model=fake_export, backend="tensorrt")
    with pytest.raises(PlanError, match=r"no TensorRT plan of text_encoder"):
        write_repository(config, tmp_path)


def test_written_repository_carries_the_deployment(fake_export: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(fake_export, tmp_path / 'a "quoted" folder é'))
    config = ServerConfig(model=model, max_rows=6, vae_decoder="in_process")
    write_repository(config, tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(deployed_models(config))
    assert deployed_models(config) == [STREAM, FACE, "text_encoder", "vae_encoder"]
    for name in deployed_models(config):
        written = parsed((tmp_path / "models" / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert ServerConfig.from_json(written.parameters["deployment"].string_value) == config
        assert (tmp_path / "models" / name / "1" / "model.py").is_file()
        if name not in (STREAM, FACE):
            assert written.parameters["component"].string_value == name


@pytest.fixture
def variants(fake_export: Path, tmp_path: Path) -> ServerConfig:
    """Two checkpoints that have only the text encoder in common, and one that is as the first."""
    spec = PipelineSpec.read(fake_export)
    for number, folder in enumerate(("base", "other", "same")):
        shutil.copytree(fake_export, tmp_path / folder)
        components = {
            name: replace(component, sha256="shared" if name == "text_encoder" else f"{name} {number % 2}")
            for name, component in spec.components.items()
        }
        replace(spec, components=components).write(tmp_path / folder)
    return ServerConfig(tmp_path / "base", more=(("other", tmp_path / "other"), ("same", tmp_path / "same")))


def test_components_with_equal_files_are_one_model(variants: ServerConfig, tmp_path: Path) -> None:
    write_repository(variants, tmp_path / "models")
    own = ["text_encoder", "vae_decoder", "vae_encoder"]
    assert deployed_models(variants) == [STREAM, FACE, *own, "other-vae_decoder", "other-vae_encoder"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(deployed_models(variants))
    for name, folder in (("vae_decoder", "base"), ("other-vae_decoder", "other")):
        written = parsed((tmp_path / "models" / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert (written.name, written.parameters["component"].string_value) == (name, "vae_decoder")
        deployment = ServerConfig.from_json(written.parameters["deployment"].string_value)
        assert (deployment.model, deployment.more) == (tmp_path / folder, ())
    stream = parsed((tmp_path / "models" / STREAM / "config.pbtxt").read_text(encoding="utf-8"))
    assert ServerConfig.from_json(stream.parameters["deployment"].string_value) == variants


def test_a_further_checkpoints_models_in_tritons_own_backend_have_its_name(
    variants: ServerConfig, tmp_path: Path
) -> None:
    write_repository(replace(variants, backend="onnxruntime", vae_encoder="in_process"), tmp_path / "models")
    found = {path.name for path in (tmp_path / "models").iterdir()}
    assert found == {STREAM, FACE, "text_encoder", "vae_decoder", "other-vae_decoder"}
    for name, folder in (("vae_decoder", "base"), ("other-vae_decoder", "other")):
        written = parsed((tmp_path / "models" / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert (written.name, written.backend) == (name, "onnxruntime")
        assert (tmp_path / "models" / name / "1").resolve() == tmp_path / folder
