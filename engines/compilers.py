"""TensorRT 10 and 11 and TensorRT-RTX behind one door: an ONNX file and shapes in, a plan's bytes out.

Polygraphy evens out most of what differs between them; the rest is here. TensorRT itself has not yet been run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from engines.build_reports import Watcher, failure, heeding_interrupts, monitor, recorder, unreadable
from engines.component import Component, Precision
from engines.driver import device_capability
from engines.errors import BuildError, MemoryShortage
from engines.manifest import COMPILERS, Capability, CompilerName, Options, dotted
from engines.network_types import check_edges, check_types
from engines.profiles import Profile

USE_RTX = "POLYGRAPHY_USE_TENSORRT_RTX"
# Networks are strongly typed from 10.0 on where that is asked for, and always from 11.0 on.
OLDEST_TENSORRT, ALWAYS_TYPED = 10, 11


@dataclass(frozen=True, slots=True)
class Work:
    """What one call of a compiler is to do.

    Attributes:
        onnx: the graph; its weights may lie beside it.
        component: what the graph should be; `precision` is what most of it should compute in.
        timing_cache: file that tactics' times are read from and added to, if any.
    """

    onnx: Path
    component: Component
    precision: Precision
    profile: Profile
    capabilities: tuple[Capability, ...]
    options: Options
    timing_cache: Path | None
    watcher: Watcher


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan's bytes (anything with the buffer protocol), and its multiplying layers by the name of their type."""

    plan: Any
    layers: Mapping[str, int]


class TensorRT:
    """TensorRT 10 or 11; it times tactics on the GPU at hand and builds for that one only."""

    name: ClassVar[CompilerName] = "tensorrt"

    def __init__(self, library: Any) -> None:
        self.version: str = library.__version__
        self._trt = library
        self._major = int(self.version.split(".")[0])
        self._always_typed = self._major >= ALWAYS_TYPED
        if self.name == "tensorrt" and self._major < OLDEST_TENSORRT:
            raise BuildError(f"TensorRT {self.version} has no strongly typed networks; install 10.0 or later")
        # The recorder and the log's own messages would tell everything twice.
        importlib.import_module("polygraphy.logger").G_LOGGER.module_severity = sys.maxsize

    def check(self, capabilities: tuple[Capability, ...], options: Options, timing_cache: Path | None) -> None:
        """Raises BuildError for what this compiler cannot be asked."""
        if timing_cache is not None and not timing_cache.parent.is_dir():
            raise BuildError(f"the timing cache cannot be written: {timing_cache.parent} is no folder; make it first")
        here = device_capability()
        if here is None:
            raise BuildError("tensorrt builds on the GPU that it builds for, and none is here; build on that machine, "
                             "or use --compiler tensorrt_rtx")  # fmt: skip
        if capabilities not in ((), (here,)):
            asked = " and ".join(map(dotted, capabilities))
            raise BuildError(f"tensorrt builds for the GPU at hand, {dotted(here)}, not for {asked}; "
                             f"leave --compute-capability out, or build on a machine with such a GPU")  # fmt: skip

    def targets(self, capabilities: tuple[Capability, ...]) -> tuple[Capability, ...]:
        """The compute capabilities that a plan is for, given those that were asked for."""
        here = device_capability()
        return (here,) if here else ()

    def compile(self, work: Work) -> Compiled:
        """Build one plan.

        Raises:
            MemoryShortage: with fewer rows it may work.
            BuildError: the graph is not what it should be, or the compiler refuses it.
        """
        trt = importlib.import_module("polygraphy.backend.trt")
        builder, network = trt.create_network(strongly_typed=True)
        parser = self._trt.OnnxParser(network, trt.get_trt_logger())
        if not parser.parse_from_file(str(work.onnx)):
            raise BuildError(f"{self.name} {self.version} cannot read {work.onnx} ({unreadable(parser)}); run `python "
                             f"-m export` again, or install a later version")  # fmt: skip
        self._check_typing(network)
        layers = check_types(network, work.component, work.precision)
        # The parser owns the weights that the network refers to.
        plan = self._build(work, trt, builder, network)
        if device_capability() in self.targets(work.capabilities):
            check_edges(self._engine(work, trt, plan), work.component)
        return Compiled(plan, layers)

    def _build(self, work: Work, trt: Any, builder: Any, network: Any) -> Any:
        builder.error_recorder = errors = recorder(self._trt)
        watching = monitor(self._trt, work.watcher)
        config = self._config(work, trt, watching)
        cache = str(work.timing_cache) if work.timing_cache else None
        try:
            with heeding_interrupts(watching), warnings.catch_warnings():
                # Polygraphy gives every compiler a timing cache, which TensorRT-RTX calls deprecated.
                warnings.simplefilter("ignore", DeprecationWarning)
                return trt.engine_bytes_from_network((builder, network), config=config, save_timing_cache=cache)
        except MemoryError as error:
            raise MemoryShortage(f"{self.name} ran out of memory on {work.component.name}") from error
        except importlib.import_module("polygraphy.exception").PolygraphyException as error:
            texts = errors.texts or [str(error)]
            raise failure(f"{self.name} {self.version}", work.component.name, texts, work.options) from error

    def _engine(self, work: Work, trt: Any, plan: Any) -> Any:
        try:
            return trt.engine_from_bytes(plan)
        except importlib.import_module("polygraphy.exception").PolygraphyException as error:
            raise BuildError(f"{self.name} {self.version} cannot load the plan of {work.component.name} that it "
                             f"built; see that the driver is recent enough for it") from error  # fmt: skip

    def _config(self, work: Work, trt: Any, monitor: Any) -> Any:
        cache = str(work.timing_cache) if work.timing_cache and work.timing_cache.exists() else None
        return trt.CreateConfig(**self._settings(work, trt, monitor), tf32=work.options.tf32, load_timing_cache=cache)

    def _settings(self, work: Work, trt: Any, monitor: Any) -> dict[str, Any]:
        """What all compilers are told."""
        profile = trt.Profile()
        for name, shapes in work.profile.items():
            profile.add(name, shapes.minimum, shapes.optimum, shapes.maximum)
        limit = {self._trt.MemoryPoolType.WORKSPACE: work.options.memory_bytes}
        return {
            "profiles": [profile],
            "refittable": work.options.refittable,
            "strip_plan": work.options.stripped,
            "builder_optimization_level": work.options.level,
            "memory_pool_limits": limit if work.options.memory_bytes else None,
            "progress_monitor": monitor,
        }

    def _check_typing(self, network: Any) -> None:
        if not self._always_typed and not network.get_flag(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            raise BuildError(f"{self.name} {self.version} would choose the types itself; install a later version")


class TensorRTRTX(TensorRT):
    """TensorRT-RTX, which builds for several kinds of GPU at once and needs none; it times nothing while it builds."""

    name: ClassVar[CompilerName] = "tensorrt_rtx"

    def check(self, capabilities: tuple[Capability, ...], options: Options, timing_cache: Path | None) -> None:
        if timing_cache is not None:
            raise BuildError("tensorrt_rtx times nothing when it builds; leave --timing-cache out")
        known = [name[2:] for name in self._trt.ComputeCapability.__members__ if name.startswith("SM")]
        allowed = [(int(digits[:-1]), int(digits[-1])) for digits in known]
        if unknown := [dotted(capability) for capability in capabilities if capability not in allowed]:
            raise BuildError(
                f"tensorrt_rtx {self.version} has no compute capability {', '.join(unknown)}; choose of "
                f"{', '.join(map(dotted, allowed))}, or use --compiler tensorrt on such a GPU"
            )
        # 1.7.1 stops at "CHECK(sm_vers_.size() == 1)".
        if (options.refittable or options.stripped) and len(set(capabilities)) > 1:
            raise BuildError("tensorrt_rtx makes refittable and stripped plans for one compute capability at a time; "
                             "build once with each")  # fmt: skip

    def targets(self, capabilities: tuple[Capability, ...]) -> tuple[Capability, ...]:
        return tuple(sorted(set(capabilities)))

    def _config(self, work: Work, trt: Any, monitor: Any) -> Any:
        rtx = importlib.import_module("polygraphy.backend.tensorrt_rtx")
        targets = {"compute_capabilities": list(work.capabilities), "use_gpu": False} if work.capabilities else {}
        create = rtx.CreateConfigRTX(**self._settings(work, trt, monitor), **targets)

        def configure(builder: Any, network: Any) -> Any:
            config = create(builder, network)
            if not work.options.tf32:
                config.clear_flag(self._trt.BuilderFlag.TF32)
            return config

        return configure


def available_compilers() -> tuple[CompilerName, ...]:
    """What is installed, the preferred first."""
    return tuple(name for name in COMPILERS if importlib.util.find_spec(name) is not None)


def open_compiler(name: str = "auto") -> TensorRT:
    """Load a compiler; one process can use one only, since Polygraphy is bound to the first.

    Raises:
        BuildError: it is not installed, too old, or another one is in use.
    """
    available = available_compilers()
    chosen = available[0] if name == "auto" and available else name
    if chosen not in available or importlib.util.find_spec("polygraphy") is None:
        found = f"only {', '.join(available)}" if available else "nor is another one"
        raise BuildError(f"compiler {name!r} is not installed with polygraphy, {found}; run `pip install '.[plans]'`, "
                         f"or install tensorrt and polygraphy")  # fmt: skip
    rtx = chosen == "tensorrt_rtx"
    os.environ[USE_RTX] = str(int(rtx))
    if rtx != importlib.import_module("polygraphy.config").USE_TENSORRT_RTX:
        raise BuildError(f"this process has begun with another compiler than {chosen}; start a new one")
    return TensorRTRTX(_load_rtx()) if rtx else TensorRT(_load_tensorrt())


def _load_tensorrt() -> Any:
    return importlib.import_module("tensorrt")


def _load_rtx() -> Any:
    return importlib.import_module("tensorrt_rtx")
