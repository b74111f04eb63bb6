"""The Triton model repository of a deployment: the committed models, with the deployment written into each."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from engines.component import Component, TensorSpec
from engines.driver import device_capability
from engines.native import VERSION, NativeModel, onnxruntime_model, tensorrt_models
from server.config import ServerConfig
from server.fields import CANCEL, FIELDS
from server.placement import Placed, placed_components
from server.sampler_names import SAMPLERS, SCHEDULES

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "model_repository"
STREAM, FACE = "stable_diffusion_stream", "stable_diffusion"
TRITON_TYPES = {"float32": "FP32", "int32": "INT32"}
OUTPUTS = {"images": "one per image: encoded bytes", "metadata": "JSON: the request as it was served, seeds, timing"}
STREAM_OUTPUTS = {
    "progress": "JSON: steps done and in total, queue position, seconds left; or which image this is",
    "preview": "JPEG of at most 256 pixels",
    "error": "JSON: code and message, in place of a failure, for requests with the parameter errors_as_data",
}


def _tensor(name: str, datatype: str, meaning: str, rank: int, *, optional: bool = True) -> str:
    flag = " optional: true" if optional else ""
    dims = ", ".join(["-1"] * rank)
    return f'  {{ name: "{name}" data_type: TYPE_{datatype} dims: [ {dims} ]{flag} }}  # {meaning}'


def _tensors(kind: str, lines: list[str]) -> str:
    # A comma must precede the comment, so it is put behind the closing brace.
    joined = [line.replace(" }  #", " },  #") for line in lines[:-1]] + lines[-1:]
    return f"{kind} [\n" + "\n".join(joined) + "\n]\n"


def request_config(name: str, *, decoupled: bool) -> str:
    """`config.pbtxt` of the stream or its face, from the fields of a request.

    Every input is optional, so that what is missing is answered by us, with a remedy, and not by Triton.
    """
    inputs = [_tensor(f.name, f.datatype, f.meaning, f.shape.count(",") + 1) for f in (*FIELDS, CANCEL)]
    outputs = OUTPUTS | (STREAM_OUTPUTS if decoupled else {})
    policy = "model_transaction_policy { decoupled: true }\n" if decoupled else ""
    return (
        f"# Written from server/request.py by `python -m server repository`.\n"
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 0\n{policy}'
        + _tensors("input", inputs)
        + _tensors("output", [_tensor(k, "STRING", v, 1, optional=False) for k, v in outputs.items()])
        + "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        + _parameter("samplers", [asdict(sampler) for sampler in SAMPLERS])
        + _parameter("schedules", SCHEDULES)
    )


def _parameter(key: str, value: object) -> str:
    """A parameter that clients can read as JSON at `GET /v2/models/<name>/config`."""
    return _text_parameter(key, json.dumps(value))


def _text_parameter(key: str, text: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(text)} }} }}\n'


def write_request_configs(models: Path = MODELS) -> None:
    """Write the two configurations that follow from the fields of a request into the checkout."""
    for name, decoupled in ((STREAM, True), (FACE, False)):
        (models / name / "config.pbtxt").write_text(request_config(name, decoupled=decoupled), encoding="utf-8")


def component_config(model: str, component: Component) -> str:
    """`config.pbtxt` of a component as a model of our own backend."""
    inputs, outputs = (", ".join(map(_component_tensor, side)) for side in (component.inputs, component.outputs))
    return (
        f'name: "{model}"\nbackend: "python"\nmax_batch_size: 0\ninput [ {inputs} ]\noutput [ {outputs} ]\n'
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    )


def _component_tensor(tensor: TensorSpec) -> str:
    dims = ", ".join(str(dim if isinstance(dim, int) else -1) for dim in tensor.shape)
    return f'{{ name: "{tensor.name}" data_type: TYPE_{TRITON_TYPES[tensor.dtype]} dims: [ {dims} ] }}'


def placed_models(config: ServerConfig) -> list[Placed]:
    """The components that are Triton models of their own, each once.

    Raises:
        EngineError: an export folder is missing or damaged.
    """
    return list({placed.name: placed for placed in placed_components(config).values()}.values())


def deployed_models(config: ServerConfig) -> list[str]:
    """The Python models that a deployment consists of.

    Raises:
        EngineError: an export folder is missing or damaged.
    """
    components = placed_models(config) if config.backend == "python" else []
    return [STREAM, FACE, *(placed.name for placed in components)]


def native_models(config: ServerConfig) -> list[NativeModel]:
    """The models of Triton's own backends that a deployment consists of.

    Raises:
        EngineError: the export is damaged, or a plan is missing, stale or damaged.
    """
    if config.backend == "python":
        return []
    on_gpu = device_capability() is not None
    models: list[NativeModel] = []
    for placed in placed_models(config):
        own, component, spec = placed.config, placed.component, placed.spec
        chosen = own.settings(component, spec)
        if config.backend == "onnxruntime":
            made = [onnxruntime_model(component, spec, own.model, chosen, on_gpu=on_gpu)]
        else:
            made = tensorrt_models(component, spec, own.model, chosen)
        models += [_prefixed(model, placed.prefix) for model in made]
    return models


def _prefixed(model: NativeModel, prefix: str) -> NativeModel:
    if not prefix:
        return model
    line = f'name: "{model.name}"'
    renamed = model.config.replace(line, f'name: "{prefix}{model.name}"', 1)
    return replace(model, name=prefix + model.name, config=renamed)


def write_repository(config: ServerConfig, target: Path) -> None:
    """Write a model repository for `tritonserver --model-repository`.

    Args:
        target: an empty or absent folder.

    Raises:
        EngineError: see `native_models`.
    """
    for name in (STREAM, FACE):
        shutil.copytree(MODELS / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        with (target / name / "config.pbtxt").open("a", encoding="utf-8") as file:
            file.write(_text_parameter("deployment", config.to_json()))
    for placed in placed_models(config) if config.backend == "python" else ():
        folder, component = target / placed.name, placed.component
        shutil.copytree(MODELS / component.name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        text = component_config(placed.name, component)
        text += _text_parameter("deployment", placed.config.to_json()) + _text_parameter("component", component.name)
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    for model in native_models(config):
        (target / model.name).mkdir(parents=True)
        (target / model.name / "config.pbtxt").write_text(model.config, encoding="utf-8")
        (target / model.name / VERSION).symlink_to(model.files.resolve())
