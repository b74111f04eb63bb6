"""Components in OpenVINO itself: the fastest CPU runner, bf16 where the processor multiplies it.

One compiled network serves every shape and holds the weights once. On full-size networks it is nearly as fast as one
that is compiled for a single shape; a network of some million weights would gain up to a quarter, for as much
memory again for each shape.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.channel_affine import fuse_channel_affine
from engines.component import Arrays, Component
from engines.errors import ArtefactError, ProviderError
from engines.providers import DEFAULTS, OPENVINO, Settings, openvino_properties

DEVICE = "CPU"
# Of compiled networks on disk: Stable Diffusion 2.1 takes 5 GB.
CACHE_BYTES = 24 << 30


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("openvino") is not None


def versions() -> dict[str, str]:
    """Of what computes, for reports."""
    return {"openvino": str(importlib.import_module("openvino").__version__).split("-")[0]}


class OpenVinoRunner:
    """A compiled network around one component.

    Args:
        component: names the file and its tensors.
        folder: where the file is.

    Raises:
        ArtefactError: the file is missing, damaged, or has other inputs than the component.
        ProviderError: OpenVINO is not installed, or cannot take the graph.
    """

    provider = OPENVINO

    def __init__(self, component: Component, folder: Path, settings: Settings = DEFAULTS) -> None:
        if not available():
            raise ProviderError("provider 'openvino' is not available here; run `pip install openvino`")
        path = folder / component.file
        if not path.is_file():
            raise ArtefactError(f"{path} does not exist; run `python -m export` again")
        self.component = component
        core = importlib.import_module("openvino").Core()
        model = _read(core, path, component)
        fuse_channel_affine(model)
        self._request = _compiled(core, model, path, settings)

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        self.component.bind(feeds)
        try:
            found = self._request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        except Exception as error:  # OpenVINO raises bare RuntimeError, and TypeError for arrays it cannot share
            raise ProviderError(f"{self.provider} failed on {self.component.name}: {_reason(error)}") from error
        # The request's memory is written again by the next call, hence the copies.
        return {spec.name: np.array(found[spec.name]) for spec in self.component.outputs}


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's text; those before it name places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _read(core: Any, path: Path, component: Component) -> Any:
    try:
        model = core.read_model(path)
    except Exception as error:  # bare RuntimeError, whatever is wrong
        raise ArtefactError(f"{path} is damaged ({_reason(error)}); run `python -m export` again") from error
    theirs = [port.get_any_name() for port in model.inputs]
    ours = [spec.name for spec in component.inputs]
    if sorted(theirs) != sorted(ours):
        raise ArtefactError(f"{path} takes {theirs}, pipeline.json says {ours}; run `python -m export` again")
    return model


def _compiled(core: Any, model: Any, path: Path, settings: Settings) -> Any:
    """A request; one is enough, since a runner is called from one thread at a time."""
    properties = openvino_properties(settings)
    try:
        request = core.compile_model(model, DEVICE, properties).create_infer_request()
    except Exception as error:  # bare RuntimeError, whatever is wrong
        raise ProviderError(f"{OPENVINO} cannot load {path}: {_reason(error)}") from error
    if folder := properties.get("CACHE_DIR"):
        forget(Path(folder), CACHE_BYTES)
    return request


def forget(folder: Path, limit: int) -> None:
    """Remove compiled networks, those first that were not read for longest, until the rest takes `limit` bytes at most.

    OpenVINO removes none, and each export, precision and version of it brings new ones. One that is in use stays
    readable to whoever has it open.
    """
    kept = []
    for path in folder.glob("*.blob"):
        with contextlib.suppress(OSError):  # another process has just removed it
            state = path.stat()
            kept.append((max(state.st_atime_ns, state.st_mtime_ns), state.st_size, path))
    kept.sort(reverse=True)
    total = 0
    for _, size, path in kept:
        total += size
        if total > limit:
            with contextlib.suppress(OSError):
                path.unlink()
