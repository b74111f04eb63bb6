"""Components in ONNX Runtime: the CPU provider in fp32 is the reference; others are used where they are available."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from engines.binding import BoundSession
from engines.component import Arrays, Component
from engines.driver import device_capability
from engines.ep_context import write_context_model
from engines.errors import ArtefactError, EngineError, ProviderError
from engines.providers import DEFAULTS, PREFERENCE, PROVIDERS, Settings, chain, context_settings

logger = logging.getLogger(__name__)

OPENVINO_EP = "openvino_ep"
# ONNX Runtime reports a bad file and a bad provider by the same exceptions; only their texts differ.
SIGNS_OF_DAMAGE = (
    "invalid_protobuf", "protobuf parsing failed", "no graph was found", "external data", "external initializer",
    "invalid_graph", "invalid model",
)  # fmt: skip
# Before each of the errors that led to one another, and before the text of one.
MARK = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
PLACE = re.compile(r"[\w/]+\.cc:\d+ \S+ ")


@cache
def _openvino_devices() -> tuple[Any, ...]:
    """The CPU devices of the `onnxruntime-ep-openvino` plug-in; none where it is absent or refuses the processor.

    The `onnxruntime-openvino` wheel, which takes ONNX Runtime's place, has the provider built in, and on any processor.
    """
    try:
        plugin = importlib.import_module("onnxruntime_ep_openvino")
    except ImportError:
        return ()
    try:
        ort.register_execution_provider_library(PROVIDERS[OPENVINO_EP].theirs, plugin.get_library_path())
    except Exception:  # a library that does not load is a provider that is not there
        logger.exception("the OpenVINO plug-in cannot be loaded")
        return ()
    devices = [device for device in ort.get_ep_devices() if "openvino" in device.ep_name.lower()]
    return tuple(d for d in devices if d.device.type == ort.OrtHardwareDeviceType.CPU)


def available_providers() -> tuple[str, ...]:
    """Our names of the execution providers that ONNX Runtime has here, the preferred one first."""
    built_in = set(ort.get_available_providers())
    found = {name for name, provider in PROVIDERS.items() if provider.theirs in built_in}
    if _openvino_devices():
        found.add(OPENVINO_EP)
    return tuple(name for name in PREFERENCE if name in found)


def versions() -> dict[str, str]:
    """Of what computes, for reports."""
    return {"onnxruntime": ort.__version__}


class OrtRunner:
    """An ONNX Runtime session around one component.

    Args:
        component: names the file and its tensors.
        folder: where the file is.
        provider: one of `available_providers()`.
        plan: a compiled file to run in place of the exported one, by the provider of its compiler.

    Raises:
        ArtefactError: the file is missing, damaged, or has other inputs than the component.
        ProviderError: the provider is not available here, or cannot take the graph.
    """

    def __init__(
        self,
        component: Component,
        folder: Path,
        provider: str,
        settings: Settings = DEFAULTS,
        *,
        plan: Path | None = None,
    ) -> None:
        present = available_providers()
        if provider not in present:
            raise ProviderError(f"provider {provider!r} is not available here; choose one of {', '.join(present)}")
        path = plan or folder / component.file
        if not path.is_file():
            remedy = "python -m engines build" if plan else "python -m export"
            raise ArtefactError(f"{path} does not exist; run `{remedy}` again")
        self.component = component
        self.provider = provider
        self._session = _plan_session(component, path, provider, settings) if plan else _session(
            component, path, provider, settings
        )  # fmt: skip
        theirs = [tensor.name for tensor in self._session.get_inputs()]
        ours = [spec.name for spec in component.inputs]
        if sorted(theirs) != sorted(ours):
            raise ArtefactError(f"{path} takes {theirs}, pipeline.json says {ours}; run `python -m export` again")
        self._outputs = [spec.name for spec in component.outputs]
        self._bound: BoundSession | None = None
        if PROVIDERS[provider].on_gpu:
            device = ("cuda", settings.device)
            self._bound = BoundSession(self._session, component.outputs, device, graphs=settings.cuda_graphs)

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        sizes = self.component.bind(feeds)
        try:
            if self._bound is not None:
                return self._bound.run(feeds, sizes)
            values = self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # ONNX Runtime raises bare pybind exceptions of several kinds
            raise ProviderError(f"{self.provider} failed on {self.component.name}: {reason(error)}") from error
        return dict(zip(self._outputs, values, strict=True))


def reason(error: Exception) -> str:
    """What ONNX Runtime says is wrong, without where in its source and how it got there."""
    last = MARK.split(str(error))[-1]
    return " ".join(PLACE.sub(" ", last).split()) or type(error).__name__


def _session(component: Component, path: Path, provider: str, settings: Settings) -> Any:
    options = _session_options(settings)
    kept = _kept_context(component, provider, settings)
    if kept is not None and kept.is_file():
        try:
            return _open(kept, provider, settings, options)
        except EngineError as error:  # cut short, or by a driver that is no longer there
            logger.warning("%s; compiling %s again", error, component.name)
            kept.unlink(missing_ok=True)
            options = _session_options(settings)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        for key, value in context_settings(kept).items():
            options.add_session_config_entry(key, value)
    return _open(path, provider, settings, options)


def _plan_session(component: Component, plan: Path, provider: str, settings: Settings) -> Any:
    options = _session_options(settings)
    # A plan is the whole component: what the provider does not take is a failure.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with tempfile.TemporaryDirectory(prefix="aquatint-plan-") as folder:
        model = write_context_model(component, plan, PROVIDERS[provider].theirs, Path(folder))
        return _open(model, provider, settings, options)


def _session_options(settings: Settings) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    # Only what ends the process: errors are raised, and told once.
    options.log_severity_level = 4
    # Spinning threads would take the cores from the other processes of the server between calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _kept_context(component: Component, provider: str, settings: Settings) -> Path | None:
    """Where the compiled session is kept: a name of everything that goes into it."""
    if settings.cache is None or not PROVIDERS[provider].context_cache:
        return None
    everything = [component.sha256, ort.__version__, device_capability(), PROVIDERS[provider].options(settings)]
    key = hashlib.sha256(json.dumps(everything).encode()).hexdigest()
    return settings.cache / provider / f"{component.name}-{key[:12]}.onnx"


def _open(path: Path, provider: str, settings: Settings, options: Any) -> Any:
    try:
        if provider == OPENVINO_EP and _openvino_devices():
            options.add_provider_for_devices(list(_openvino_devices()), PROVIDERS[provider].options(settings))
            return ort.InferenceSession(path, options)
        session = ort.InferenceSession(path, options, providers=chain(provider, settings, available_providers()))
    except Exception as error:  # bare pybind exceptions again
        if any(sign in str(error).lower() for sign in SIGNS_OF_DAMAGE):
            raise ArtefactError(f"{path} is damaged ({reason(error)}); run `python -m export` again") from error
        remedy = "; choose another with --provider" if PROVIDERS[provider].on_gpu else ""
        raise ProviderError(f"{provider} cannot load {path}: {reason(error)}{remedy}") from error
    # A provider whose libraries are missing is left out with a line in the log, and the CPU takes over.
    if session.get_providers()[0] != PROVIDERS[provider].theirs:
        raise ProviderError(
            f"{provider} is installed but does not start here; see that its CUDA libraries are found, or choose "
            "another with --provider"
        )
    return session
