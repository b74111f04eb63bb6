"""The seam between numerics and compiled networks: `infer(feeds) -> outputs`, its factory and its fake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engines.component import Arrays, Component, PipelineSpec, TensorSpec, resolve
from engines.driver import device_capability, tensorrt_version, this_machine
from engines.errors import ProviderError
from engines.providers import DEFAULTS, OPENVINO, PREFERENCE, PROVIDERS, Settings

FAKE = "fake"


class Runner(Protocol):
    """A loaded component.

    `provider` says who computes. `infer` may be called from one thread at a time.
    """

    component: Component
    provider: str

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run once; feeds and outputs are keyed by tensor name.

        Raises:
            FeedError: feeds do not fit the component.
            ProviderError: the provider failed.
        """


class FakeRunner:
    """Computes something cheap that depends on every input of a row and on nothing outside the row.

    The first output is half the first input plus a number made of the others, when their shapes agree, so a denoising
    loop over it converges; other outputs are filled with a pattern. Rows never influence each other, bit for bit.

    Args:
        component: gives names and shapes.
        seconds: how long a call with that many rows takes; nothing by default.
        sleep: how to wait, so that tests need not.
    """

    provider = FAKE

    def __init__(
        self,
        component: Component,
        seconds: Callable[[int], float] = lambda rows: 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.component = component
        self.calls: list[int] = []
        self._seconds = seconds
        self._sleep = sleep

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        bound = self.component.bind(feeds)
        first = feeds[self.component.inputs[0].name]
        rows = len(first)
        self.calls.append(rows)
        if (seconds := self._seconds(rows)) > 0:
            self._sleep(seconds)
        key = np.zeros(rows)
        for spec in self.component.inputs:
            key += _row_number(feeds[spec.name])
        return {spec.name: _fake_output(spec, bound, first, key) for spec in self.component.outputs}


class SerialRunner:
    """A runner that several threads may call; they take turns."""

    def __init__(self, runner: Runner) -> None:
        self.component = runner.component
        self.provider = runner.provider
        self._runner = runner
        self._lock = threading.Lock()

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        with self._lock:
            return self._runner.infer(feeds)


def _row_number(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(rows,): a number in [-1, 1] for each row."""
    flat = np.ascontiguousarray(array, dtype=np.float64).reshape(len(array), -1)
    weights = np.cos(np.arange(flat.shape[1]) * 0.37)
    numbers: npt.NDArray[np.float64] = np.sin((flat * weights).sum(axis=1))
    return numbers


def _fake_output(
    spec: TensorSpec, bound: Mapping[str, int], first: npt.NDArray[Any], key: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    shape = tuple(resolve(dim, bound) for dim in spec.shape)
    column = key.reshape(-1, *[1] * (len(shape) - 1))
    if shape == first.shape:
        converging: npt.NDArray[Any] = (first * 0.5 + 0.1 * column).astype(spec.dtype)
        return converging
    pattern = np.sin(np.arange(np.prod(shape[1:])) * 0.11).reshape(1, *shape[1:])
    patterned: npt.NDArray[Any] = (0.5 * pattern + 0.5 * np.sin(column * 7.0)).astype(spec.dtype)
    return patterned


def available() -> tuple[str, ...]:
    """The names of the providers that can be used here, the preferred one first."""
    from engines import openvino_runner, ort_runner

    found = {*ort_runner.available_providers(), *((OPENVINO,) if openvino_runner.available() else ())}
    return tuple(name for name in PREFERENCE if name in found)


def chosen_provider(name: str, *, plans: bool = False) -> str:
    """The named provider; for `auto` the preferred one of those that have here what they need to start.

    Args:
        plans: whether it is to run plans; `auto` then takes the compiler of plans that is installed.

    Raises:
        ProviderError: it is unknown or not available here.
    """
    if plans:
        return this_machine(name).compiler
    present = available()
    if name != "auto" and name not in present:
        raise ProviderError(f"provider {name!r} is not available here; choose auto or one of {', '.join(present)}")
    return next(filter(_may_start, present)) if name == "auto" else name


def _may_start(name: str) -> bool:
    """Whether a provider that is built in may also be used; ONNX Runtime built for GPUs has theirs on any machine."""
    if name not in PROVIDERS or not PROVIDERS[name].on_gpu:
        return True
    return device_capability() is not None and (name != "tensorrt" or tensorrt_version() is not None)


def open_runner(
    component: Component,
    folder: Path,
    provider: str = "auto",
    settings: Settings = DEFAULTS,
) -> Runner:
    """Load a component's exported file from `folder`.

    Args:
        provider: `auto` takes the first that can start here of `engines.providers.PREFERENCE`; else one of their names,
            or `fake`.

    Raises:
        ArtefactError: the file is missing or damaged.
        ProviderError: the provider is unknown or not available here.
    """
    if provider == FAKE:
        return FakeRunner(component)
    chosen = chosen_provider(provider)
    if chosen == OPENVINO:
        from engines.openvino_runner import OpenVinoRunner

        return OpenVinoRunner(component, folder, settings)
    from engines.ort_runner import OrtRunner

    return OrtRunner(component, folder, chosen, settings)


def open_plans(
    component: Component, spec: PipelineSpec, folder: Path, provider: str = "auto", settings: Settings = DEFAULTS
) -> Runner:
    """Load a component's plans, one for each resolution; see `engines.plan_runner.PlanRunner` for what it raises."""
    from engines.plan_runner import PlanRunner

    return PlanRunner(component, spec, folder, provider, settings)
