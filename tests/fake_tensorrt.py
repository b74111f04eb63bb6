"""A `tensorrt` that builds nothing: it reads the ONNX file's types and puts what it was told into the "plan".

TensorRT itself is not on the package index. Versions differ here as the real ones' documentation says: 10 is strongly
typed on demand and has precision flags, 11 always is and has none.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx

TYPES = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "INT32": "INT32", "INT64": "INT64"}
LAYERS = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY"}


def tensor(name: str, element: int, shape: list[int] | None = None) -> SimpleNamespace:
    dtype = SimpleNamespace(name=TYPES[onnx.TensorProto.DataType.Name(element)])
    return SimpleNamespace(name=name, dtype=dtype, shape=tuple(shape or ()), is_shape_tensor=False)


def edge(value: onnx.ValueInfoProto) -> SimpleNamespace:
    shape = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
    return tensor(value.name, value.type.tensor_type.elem_type, shape)


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.inputs: list[SimpleNamespace] = []
        self.outputs: list[SimpleNamespace] = []
        self.layers: list[SimpleNamespace] = []

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, index: int) -> SimpleNamespace:
        return self.inputs[index]

    def get_output(self, index: int) -> SimpleNamespace:
        return self.outputs[index]

    def get_layer(self, index: int) -> SimpleNamespace:
        return self.layers[index]

    def get_flag(self, flag: int) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter(self.layers)


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        graph = onnx.load(path).graph
        weights = {weight.name: weight.data_type for weight in graph.initializer}
        self._network.inputs = [edge(value) for value in graph.input]
        self._network.outputs = [edge(value) for value in graph.output]
        for node in graph.node:
            output = tensor(node.output[0], next((weights[n] for n in node.input if n in weights), 1))
            kind = SimpleNamespace(name=LAYERS.get(node.op_type, "SHUFFLE"))
            self._network.layers.append(SimpleNamespace(type=kind, get_output=lambda i, output=output: output))
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]

    def __bool__(self) -> bool:
        return True


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        return True

    def serialize(self) -> TimingCache:
        return self

    def __enter__(self) -> bytes:
        return self.content + b"timed "

    def __exit__(self, *failure: object) -> None:
        pass


class Config:
    DLA_core = -1
    default_device_type = "GPU"

    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.limits: dict[str, int] = {}
        self.profiles: list[Profile] = []
        self.builder_optimization_level = 3
        self.cache = TimingCache(b"")
        self.progress_monitor: Any = None

    num_optimization_profiles = property(lambda self: len(self.profiles))

    def set_flag(self, flag: enum.IntEnum) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: enum.IntEnum) -> None:
        self.flags.discard(flag.name)

    def get_flag(self, flag: enum.IntEnum) -> bool:
        return flag.name in self.flags

    def set_memory_pool_limit(self, pool: enum.IntEnum, size: int) -> None:
        self.limits[pool.name] = size

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, content: bytes) -> TimingCache:
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> TimingCache:
        return self.cache


class Builder:
    """Has memory for `rows` rows."""

    rows = sys.maxsize
    error_recorder: Any = None

    def __init__(self, logger: Any) -> None:
        pass

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        config.progress_monitor.phase_start("Building", None, 1)
        if not config.progress_monitor.step_complete("Building", 0):
            return None
        [profile] = config.profiles
        if max(shapes[-1][0] for shapes in profile.shapes.values()) > self.rows:
            self.error_recorder.report_error("FAILED_ALLOCATION", "Could not find any implementation for node {Conv}.")
            return None
        told = {
            "network_flags": network.flags,
            "flags": sorted(config.flags),
            "limits": config.limits,
            "level": config.builder_optimization_level,
            "profile": profile.shapes,
            "timing_cache": config.cache.content.decode(),
            "edges": {t.name: t.dtype.name for t in (*network.inputs, *network.outputs)},
        }
        return json.dumps(told).encode()


class Runtime:
    def __init__(self, logger: Any) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> SimpleNamespace:
        edges = json.loads(plan)["edges"]
        return SimpleNamespace(
            num_io_tensors=len(edges),
            get_tensor_name=lambda index: list(edges)[index],
            get_tensor_dtype=lambda name: SimpleNamespace(name=edges[name]),
        )


def install(version: str) -> ModuleType:
    """Make `import tensorrt` give this, in a process that has not imported Polygraphy yet."""
    modern = int(version.split(".")[0]) >= 11
    made = ModuleType("tensorrt")
    made.__spec__ = ModuleSpec("tensorrt", None)
    flags = ["REFIT", "STRIP_PLAN", "TF32", *([] if modern else ["FP16", "BF16", "INT8"])]
    creation = ["STRONGLY_TYPED"] if modern else ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
    contents = {
        "__version__": version,
        "Builder": Builder,
        "OnnxParser": OnnxParser,
        "Runtime": Runtime,
        "ILogger": type("ILogger", (), {"__init__": lambda self: None}),
        "IErrorRecorder": type("IErrorRecorder", (), {"__init__": lambda self: None}),
        "IProgressMonitor": type("IProgressMonitor", (), {"__init__": lambda self: None}),
        "init_libnvinfer_plugins": lambda logger, namespace: True,
        "BuilderFlag": enum.IntEnum("BuilderFlag", flags, start=0),
        "NetworkDefinitionCreationFlag": enum.IntEnum("NetworkDefinitionCreationFlag", creation, start=0),
        "MemoryPoolType": enum.IntEnum("MemoryPoolType", ["WORKSPACE"], start=0),
        "ProfilingVerbosity": enum.IntEnum("ProfilingVerbosity", ["DETAILED"], start=0),
        "DeviceType": SimpleNamespace(DLA="DLA"),
    }
    for name, content in contents.items():
        setattr(made, name, content)
    sys.modules["tensorrt"] = made
    return made
