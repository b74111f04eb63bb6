"""Components in ONNX Runtime: the CPU provider in fp32 is the reference; others are used where they are available."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from engines.component import Arrays, Component
from engines.errors import ArtefactError, ProviderError

logger = logging.getLogger(__name__)

PREFERENCE = ("tensorrt", "cuda", "openvino", "cpu")
BUILT_IN = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
OPENVINO = "OpenVINOExecutionProvider"
# AMX or AVX512-BF16 make bf16 the faster type; elsewhere OpenVINO would emulate it.
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}
# ONNX Runtime reports a bad file and a bad provider by the same exceptions; only their texts differ.
SIGNS_OF_DAMAGE = (
    "invalid_protobuf", "protobuf parsing failed", "no graph was found", "external data", "external initializer",
    "invalid_graph", "invalid model",
)  # fmt: skip


def cpu_has_bf16(flags: str | None = None) -> bool:
    """Whether the processor multiplies bf16 in hardware, from the kernel's list of its flags."""
    if flags is None:
        listing = Path("/proc/cpuinfo")
        flags = listing.read_text() if listing.exists() else ""
    return bool(BF16_FLAGS & set(flags.split()))


@cache
def _openvino_devices() -> tuple[Any, ...]:
    """The CPU devices of the `onnxruntime-ep-openvino` plug-in; none where it is absent or refuses the processor."""
    try:
        plugin = importlib.import_module("onnxruntime_ep_openvino")
    except ImportError:
        return ()
    try:
        ort.register_execution_provider_library(OPENVINO, plugin.get_library_path())
    except Exception:  # a library that does not load is a provider that is not there
        logger.exception("the OpenVINO plug-in cannot be loaded")
        return ()
    devices = [device for device in ort.get_ep_devices() if "openvino" in device.ep_name.lower()]
    return tuple(d for d in devices if d.device.type == ort.OrtHardwareDeviceType.CPU)


def available_providers() -> tuple[str, ...]:
    """Our names of the providers that can be used here, the preferred one first."""
    built_in = set(ort.get_available_providers())
    found = {name for name, theirs in BUILT_IN.items() if theirs in built_in}
    if _openvino_devices():
        found.add("openvino")
    return tuple(name for name in PREFERENCE if name in found)


class OrtRunner:
    """An ONNX Runtime session around one component.

    Args:
        component: names the file and its tensors.
        folder: where the file is.
        provider: `auto` or one of `PREFERENCE`.
        threads: threads within an operator; 0 takes one per core.

    Raises:
        ArtefactError: the file is missing, damaged, or has other inputs than the component.
        ProviderError: the provider is unknown, not available here, or cannot take the graph.
    """

    def __init__(self, component: Component, folder: Path, provider: str = "auto", threads: int = 0) -> None:
        available = available_providers()
        chosen = available[0] if provider == "auto" else provider
        if chosen not in available:
            raise ProviderError(
                f"provider {provider!r} is not available here; choose auto or one of {', '.join(available)}"
            )
        path = folder / component.file
        if not path.is_file():
            raise ArtefactError(f"{path} does not exist; run `python -m export` again")
        self.component = component
        self.provider = chosen
        self._session = _session(path, chosen, threads)
        theirs = [tensor.name for tensor in self._session.get_inputs()]
        ours = [spec.name for spec in component.inputs]
        if sorted(theirs) != sorted(ours):
            raise ArtefactError(f"{path} takes {theirs}, pipeline.json says {ours}; run `python -m export` again")
        self._outputs = [spec.name for spec in component.outputs]

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        self.component.bind(feeds)
        try:
            values = self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # ONNX Runtime raises bare pybind exceptions of several kinds
            raise ProviderError(f"{self.provider} failed on {self.component.name}: {error}") from error
        return dict(zip(self._outputs, values, strict=True))


def _session(path: Path, provider: str, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Spinning threads would take the cores from the other processes of the server between calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return OPENERS.get(provider, _open_built_in)(path, provider, options)
    except Exception as error:  # bare pybind exceptions again
        text = str(error)
        if any(sign in text.lower() for sign in SIGNS_OF_DAMAGE):
            raise ArtefactError(f"{path} is damaged ({text}); run `python -m export` again") from error
        raise ProviderError(f"{provider} cannot load {path}: {text}") from error


def _open_built_in(path: Path, provider: str, options: Any) -> Any:
    fallback = [] if provider == "cpu" else [BUILT_IN["cpu"]]
    return ort.InferenceSession(path, options, providers=[BUILT_IN[provider], *fallback])


def _open_openvino(path: Path, provider: str, options: Any) -> Any:
    precision = "bf16" if cpu_has_bf16() else "f32"
    configuration = f'{{"CPU": {{"INFERENCE_PRECISION_HINT": "{precision}"}}}}'
    options.add_provider_for_devices(list(_openvino_devices()), {"load_config": configuration})
    return ort.InferenceSession(path, options)


OPENERS: dict[str, Callable[[Path, str, Any], Any]] = {"openvino": _open_openvino}
