"""Components in Triton's own backends, `onnxruntime` and `tensorrt`: the `config.pbtxt` of each model.

Fields as in model_config.proto of github.com/triton-inference-server/common; parameters of the ONNX Runtime backend as
in its README, which passes those of the TensorRT and CUDA providers on by ONNX Runtime's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.component import Component, PipelineSpec, TensorSpec
from engines.errors import ArtefactError, PlanError
from engines.manifest import FOLDER, Capability, Manifest, check, check_weights, dotted, is_stale, plans
from engines.profiles import (
    Profile,
    compiled_resolutions,
    component_profile,
    default_rows,
    depends_on_resolution,
    latent_sides,
    reach,
)
from engines.providers import PROVIDERS, Settings

DATA_TYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "float16": "TYPE_FP16"}
# Triton numbers versions of a model; ours have one.
VERSION = "1"
# The rows of one guided image, which calls have most often.
WARM_ROWS = 2


class Word(str):
    """A text that is written without quotation marks: an enumeration's value."""


@dataclass(frozen=True, slots=True)
class NativeModel:
    """A Triton model without code.

    Attributes:
        config: the text of its `config.pbtxt`.
        files: the folder that its version is a link to, so that weights beside a graph are found.
    """

    name: str
    config: str
    files: Path


def model_name(component: str, resolution: tuple[int, int] | None) -> str:
    """Of the Triton model of a component's plan: one for each resolution that a plan was built for."""
    return f"{component}_{resolution[0]}x{resolution[1]}" if resolution else component


def resolution_models(component: Component, spec: PipelineSpec) -> dict[tuple[int, int], str]:
    """The names of the models of a component's plans by the (height, width) of the latents that they take."""
    if not depends_on_resolution(component):
        return {}
    return {latent_sides(r, spec.downscale): model_name(component.name, r) for r in spec.resolutions}


def onnxruntime_model(
    component: Component, spec: PipelineSpec, folder: Path, settings: Settings, *, on_gpu: bool
) -> NativeModel:
    """An exported file in Triton's ONNX Runtime backend; it serves every resolution."""
    latents = [latent_sides(resolution, spec.downscale) for resolution in compiled_resolutions(component, spec)]
    rows = default_rows(component.name)
    profiles = settings.profiles or [component_profile(component, latent, rows) for latent in latents]
    compiled = replace(settings, profiles=tuple(profiles))
    config = {
        **_identity(component.name, "onnxruntime", "onnxruntime_onnx", component.file),
        **_tensors(component, profiles),
        "optimization": _onnxruntime_optimization(compiled, on_gpu=on_gpu),
        "instance_group": [_instances(settings, on_gpu=on_gpu)],
        "parameters": [_parameter("intra_op_thread_count", str(settings.threads))],
        "model_warmup": [_warm_up(component, _shapes_at(profile, WARM_ROWS)) for profile in profiles],
    }
    return NativeModel(component.name, pbtxt(config), folder)


def tensorrt_models(component: Component, spec: PipelineSpec, folder: Path, settings: Settings) -> list[NativeModel]:
    """The plans of a component in Triton's TensorRT backend, a model for each resolution.

    Where plans for several compute capabilities are there, each GPU takes its own.

    Raises:
        PlanError: a resolution has no plan by TensorRT, or a plan is stale or damaged.
    """
    models = []
    for fitting in _manifests(component, spec, folder):
        for manifest in fitting:
            plan = folder / FOLDER / f"{manifest.recipe.stem}.plan"
            check(manifest, plan)
            check_weights(manifest.recipe, plan)
        models.append(NativeModel(*_tensorrt_model(component, fitting, settings), folder / FOLDER))
    return models


def tensorrt_profiles(component: Component, spec: PipelineSpec, folder: Path) -> list[Profile]:
    """The profiles of the plans that these models have, of every resolution and kind of GPU.

    Raises:
        PlanError: a resolution has no plan by TensorRT.
    """
    every = _manifests(component, spec, folder)
    return [chosen.profile for fitting in every for chosen in _by_capability(fitting).values()]


def _manifests(component: Component, spec: PipelineSpec, folder: Path) -> list[list[Manifest]]:
    """Those of a component's plans by TensorRT, for each resolution; raises PlanError where one has none."""
    found = [
        Manifest.read(plan.with_suffix(".json")) for plan in plans(folder) if plan.name.startswith(f"{component.name}-")
    ]
    # What an earlier export left has a successor, or is missed below.
    ours = [m for m in found if m.recipe.compiler == "tensorrt" and not is_stale(m.recipe, spec)]
    every = []
    for resolution in spec.resolutions if depends_on_resolution(component) else (None,):
        fitting = [manifest for manifest in ours if manifest.recipe.resolution == resolution]
        if not fitting:
            raise PlanError(
                f"{folder} has no TensorRT plan of {model_name(component.name, resolution)}; build it with "
                f"`python -m engines build {folder} --compiler tensorrt`"
            )
        every.append(fitting)
    return every


def _by_capability(manifests: Sequence[Manifest]) -> dict[Capability, Manifest]:
    """Of several for one kind of GPU the one with the most rows."""
    return {capability: m for m in sorted(manifests, key=_reach) for capability in m.recipe.capabilities}


def _tensorrt_model(component: Component, manifests: Sequence[Manifest], settings: Settings) -> tuple[str, str]:
    """Name and configuration of the model of these plans, which differ in their compute capability."""
    # All kinds of GPU are warmed up with what each can take.
    chosen = _by_capability(manifests)
    files = {dotted(capability): f"{m.recipe.stem}.plan" for capability, m in chosen.items()}
    least = min(chosen.values(), key=_reach)
    recipe, profile = least.recipe, least.profile
    name = model_name(component.name, recipe.resolution)
    recorded = _recorded(profile)
    graphs = [_graph(_shapes_at(profile, rows)) for rows in recorded] if settings.cuda_graphs else []
    config = {
        **_identity(name, "tensorrt", "tensorrt_plan", f"{recipe.stem}.plan"),
        "cc_model_filenames": [{"key": capability, "value": file} for capability, file in files.items()],
        **_tensors(component, [profile]),
        "optimization": {
            "cuda": {
                "graphs": settings.cuda_graphs,
                "busy_wait_events": True,
                "graph_spec": graphs,
                "output_copy_stream": True,
            },
            "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True},
        },
        "instance_group": [{**_instances(settings, on_gpu=True), "profile": ["0"]}],
        "model_warmup": [_warm_up(component, _shapes_at(profile, rows)) for rows in recorded],
    }
    return name, pbtxt(config)


def _reach(manifest: Manifest) -> tuple[int, int]:
    return reach(manifest.profile)


def _recorded(profile: Profile) -> list[int]:
    """The rows that graphs are recorded and warmed up for: powers of two, and the fewest and the most."""
    fewest = max(shapes.minimum[0] for shapes in profile.values())
    most = max(shapes.maximum[0] for shapes in profile.values())
    return sorted({fewest, most, *(2**i for i in range(most.bit_length()) if fewest <= 2**i <= most)})


def _identity(name: str, backend: str, platform: str, file: str) -> dict[str, Any]:
    """Rows are a dimension like others: our loop makes the batches, so Triton must not."""
    return {
        "name": name,
        "backend": backend,
        "platform": platform,
        "max_batch_size": 0,
        "version_policy": {"specific": {"versions": [int(VERSION)]}},
        "default_model_filename": file,
    }


def _tensors(component: Component, profiles: Sequence[Profile]) -> dict[str, Any]:
    """An output's size is told only where it is fixed; an input's also where all profiles agree."""

    def fixed(spec: TensorSpec) -> list[int]:
        ends = [shape for profile in profiles for shape in (profile[spec.name].minimum, profile[spec.name].maximum)]
        return [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*ends, strict=True)]

    outputs = [[dim if isinstance(dim, int) else -1 for dim in spec.shape] for spec in component.outputs]
    return {
        "input": [_tensor(spec, fixed(spec)) for spec in component.inputs],
        "output": [_tensor(spec, dims) for spec, dims in zip(component.outputs, outputs, strict=True)],
    }


def _tensor(spec: TensorSpec, dims: Sequence[int]) -> dict[str, Any]:
    return {"name": spec.name, "data_type": Word(DATA_TYPES[spec.dtype]), "dims": list(dims)}


def _onnxruntime_optimization(settings: Settings, *, on_gpu: bool) -> dict[str, Any]:
    """Graph level 0 makes all optimisations. Triton sets the device by the instance group."""
    if not on_gpu:
        return {
            "graph": {"level": 0},
            "execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]},
        }
    accelerators = []
    for name in ("tensorrt", "cuda"):
        options = {k: v for k, v in PROVIDERS[name].options(settings).items() if k != "device_id"}
        accelerators.append({"name": name, "parameters": [{"key": k, "value": v} for k, v in options.items()]})
    return {"graph": {"level": 0}, "execution_accelerators": {"gpu_execution_accelerator": accelerators}}


def _instances(settings: Settings, *, on_gpu: bool) -> dict[str, Any]:
    """One instance: calls of a component come one at a time, and a second would hold the weights twice."""
    if on_gpu:
        return {"kind": Word("KIND_GPU"), "count": 1, "gpus": [settings.device]}
    return {"kind": Word("KIND_CPU"), "count": 1}


def _shapes_at(profile: Profile, rows: int) -> dict[str, tuple[int, ...]]:
    """The usual shapes, with that many rows as far as the profile has them."""
    return {
        name: (min(max(rows, shapes.minimum[0]), shapes.maximum[0]), *shapes.optimum[1:])
        for name, shapes in profile.items()
    }


def _graph(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The batch size is that of a model without a batch dimension of Triton's."""
    inputs = [{"key": name, "value": {"dim": list(shape)}} for name, shape in shapes.items()]
    return {"batch_size": 0, "input": inputs}


def _warm_up(component: Component, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """A call of zeros, which are also valid ids of tokens."""
    types = {spec.name: Word(DATA_TYPES[spec.dtype]) for spec in component.inputs}
    inputs = [
        {"key": name, "value": {"data_type": types[name], "dims": list(shape), "zero_data": True}}
        for name, shape in shapes.items()
    ]
    largest = max(shapes.values(), key=len)
    return {"name": f"zeros {'x'.join(map(str, largest))}", "batch_size": 1, "inputs": inputs}


def _parameter(key: str, text: str) -> dict[str, Any]:
    return {"key": key, "value": {"string_value": text}}


def pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """A protobuf message in text format: a mapping is a message, a list a repeated field.

    Raises:
        ArtefactError: a value that no field has.
    """
    lines = []
    for name, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                lines.append(f"{indent}{name} {{\n{pbtxt(each, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(each)}\n")
    return "".join(lines)


def _scalar(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Word() | int():
            return str(value)
        case str():
            return json.dumps(value)
    raise ArtefactError(f"{value!r} is neither a text, a number nor a truth value, as fields of a configuration are")
