"""The Triton model repository: committed files, and what a deployment writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engines.errors import PlanError
from server.config import ServerConfig
from server.repository import COMPONENT_MODELS, FACE, MODELS, STREAM, deployed_models, request_config, write_repository
from server.request import CANCEL, FIELDS
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
    assert all(i.optional and list(i.dims) == [-1] for i in config.input)
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


@pytest.mark.parametrize("name", [STREAM, FACE, *COMPONENT_MODELS])
def test_every_model_is_a_valid_python_model(name: str) -> None:
    config = parsed((MODELS / name / "config.pbtxt").read_text(encoding="utf-8"))
    assert config.name == name
    assert config.backend == "python"
    assert config.max_batch_size == 0
    assert (MODELS / name / "1" / "model.py").is_file()


def test_component_models_have_the_tensors_of_the_catalogue(fake_export: Path) -> None:
    from engines.component import PipelineSpec

    types = {"int32": "TYPE_INT32", "float32": "TYPE_FP32"}
    spec = PipelineSpec.read(fake_export)
    for name in COMPONENT_MODELS:
        config = parsed((MODELS / name / "config.pbtxt").read_text(encoding="utf-8"))
        component = spec.component(name)
        for ours, theirs in ((component.inputs, config.input), (component.outputs, config.output)):
            found = {t.name: (model_config_pb2.DataType.Name(t.data_type), len(t.dims)) for t in theirs}
            assert found == {t.name: (types[t.dtype], len(t.shape)) for t in ours}


def test_components_in_tritons_own_backend_are_links_to_the_export(fake_export: Path, tmp_path: Path) -> None:
    config = ServerConfig(model=fake_export, backend="onnxruntime", unet="triton", vae_decoder="in_process")
    write_repository(config, tmp_path)
    assert deployed_models(config) == [STREAM, FACE]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([STREAM, FACE, "text_encoder", "unet"])
    for name in ("text_encoder", "unet"):
        written = parsed((tmp_path / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert (written.name, written.backend) == (name, "onnxruntime")
        assert (tmp_path / name / "1").resolve() == fake_export.resolve()


def test_plans_that_are_not_there_are_missed_before_the_server_starts(fake_export: Path, tmp_path: Path) -> None:
    config = ServerConfig(model=fake_export, backend="tensorrt")
    with pytest.raises(PlanError, match=r"no TensorRT plan of text_encoder"):
        write_repository(config, tmp_path)


def test_written_repository_carries_the_deployment(tmp_path: Path) -> None:
    config = ServerConfig(model=tmp_path / 'a "quoted" folder é', max_rows=6, vae_decoder="in_process")
    write_repository(config, tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(deployed_models(config))
    assert "vae_decoder" not in deployed_models(config)
    for name in deployed_models(config):
        written = parsed((tmp_path / "models" / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert ServerConfig.from_json(written.parameters["deployment"].string_value) == config
