"""The execution providers of ONNX Runtime and their options, as data; nothing here imports it.

Options as documented at onnxruntime.ai/docs/execution-providers (CUDA, TensorRT, TensorRTRTX, OpenVINO) and, for a
CPU's properties, at docs.openvino.ai (CPU device). No option names a precision for a GPU: the graph is typed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from engines.profiles import Profile, ShapeRange

logger = logging.getLogger(__name__)

Options: TypeAlias = dict[str, str]

# AMX or AVX512-BF16 make bf16 the faster type; elsewhere OpenVINO would emulate it.
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How components are run, whatever runs them.

    Attributes:
        threads: CPU threads within an operator; 0 takes one per core.
        pinned: bind these threads to cores; for a process that has the cores, or a NUMA node, to itself.
        precision: that OpenVINO computes in, `f32` or `bf16`; empty takes bf16 where the processor multiplies it.
        cache: folder for what providers compile; None compiles at every start.
        device: index of the GPU.
        cuda_graphs: record a call's kernels once for each shape, and replay them.
        profiles: of the component on a GPU that compiles it, one for each resolution; empty learns shapes from calls.
    """

    threads: int = 0
    pinned: bool = False
    precision: str = ""
    cache: Path | None = None
    device: int = 0
    cuda_graphs: bool = False
    profiles: Sequence[Profile] = field(default=())


DEFAULTS = Settings()


def default_cache() -> Path | None:
    """Where compiled components are kept unless told otherwise: `aquatint` in the user's cache folder.

    None where nothing can be written there, as in a container without a home: then each start compiles.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "aquatint"
    except RuntimeError:  # a user id without a name, as containers are given
        logger.warning("this user has no home, so each start compiles; set XDG_CACHE_HOME to a folder for the cache")
        return None
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK | os.X_OK):
        return folder
    logger.warning("%s cannot be written to, so each start compiles; set XDG_CACHE_HOME to a folder that can", folder)
    return None


def cpu_has_bf16(flags: str | None = None) -> bool:
    """Whether the processor multiplies bf16 in hardware, from the kernel's list of its flags."""
    if flags is None:
        listing = Path("/proc/cpuinfo")
        flags = listing.read_text() if listing.exists() else ""
    return bool(BF16_FLAGS & set(flags.split()))


def openvino_precision(settings: Settings) -> str:
    """`bf16` or `f32`."""
    return settings.precision or ("bf16" if cpu_has_bf16() else "f32")


def openvino_properties(settings: Settings) -> Options:
    """Properties of OpenVINO's CPU device: one stream that uses all its threads, since calls come one at a time."""
    found = {
        "INFERENCE_PRECISION_HINT": openvino_precision(settings),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": "YES" if settings.pinned else "NO",
    }
    if settings.threads:
        found["INFERENCE_NUM_THREADS"] = str(settings.threads)
    if settings.cache is not None:
        found["CACHE_DIR"] = str(settings.cache / "openvino")
    return found


def _openvino(settings: Settings) -> Options:
    """The plug-in ignores its older options by name (`cache_dir`, `num_of_threads`) in favour of `load_config`."""
    return {"load_config": json.dumps({"CPU": openvino_properties(settings)})}


def _cuda(settings: Settings) -> Options:
    return {
        "device_id": str(settings.device),
        # Doubling the arena would double a peak that other models of the GPU need.
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "use_tf32": "0",
        "enable_cuda_graph": _flag(settings.cuda_graphs),
    }


def _tensorrt(settings: Settings) -> Options:
    found = {
        "device_id": str(settings.device),
        "trt_cuda_graph_enable": _flag(settings.cuda_graphs),
        "trt_context_memory_sharing_enable": "1",
        **_shapes("trt", settings.profiles),
    }
    if settings.cache is not None:
        folder = str(settings.cache / "tensorrt")
        found |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    return found


def _tensorrt_rtx(settings: Settings) -> Options:
    found = {
        "device_id": str(settings.device),
        "enable_cuda_graph": _flag(settings.cuda_graphs),
        "nv_multi_profile_enable": _flag(len(settings.profiles) > 1),
        **_shapes("nv", settings.profiles),
    }
    if settings.cache is not None:
        found["nv_runtime_cache_path"] = str(settings.cache / "tensorrt_rtx")
    return found


def _none(settings: Settings) -> Options:
    return {}


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _shapes(prefix: str, profiles: Sequence[Profile]) -> Options:
    """`x:1x4x64x64,y:1,x:1x4x96x96,y:1`: an input that comes again begins the next profile."""
    if not profiles:
        return {}
    sides: dict[str, Callable[[ShapeRange], tuple[int, ...]]] = {
        "min": lambda shapes: shapes.minimum,
        "opt": lambda shapes: shapes.optimum,
        "max": lambda shapes: shapes.maximum,
    }
    named = [(name, shapes) for profile in profiles for name, shapes in profile.items()]
    return {
        f"{prefix}_profile_{side}_shapes": ",".join(f"{name}:{'x'.join(map(str, of(s)))}" for name, s in named)
        for side, of in sides.items()
    }


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider.

    Attributes:
        theirs: what ONNX Runtime calls it.
        options: of the provider.
        fallback: who takes the operators that it does not.
        on_gpu: whether tensors live on a GPU, so that binding them saves copies.
        context_cache: whether a session can be kept as an EP-context model, and opened from it at the next start.
    """

    theirs: str
    options: Callable[[Settings], Options] = _none
    fallback: tuple[str, ...] = ()
    on_gpu: bool = False
    context_cache: bool = False


PROVIDERS: Mapping[str, Provider] = {
    "tensorrt": Provider("TensorrtExecutionProvider", _tensorrt, ("cuda", "cpu"), on_gpu=True),
    "tensorrt_rtx": Provider(
        "NvTensorRTRTXExecutionProvider", _tensorrt_rtx, ("cuda", "cpu"), on_gpu=True, context_cache=True
    ),
    "cuda": Provider("CUDAExecutionProvider", _cuda, ("cpu",), on_gpu=True),
    # Its plug-in offers no device on a CPU that is not Intel's (microsoft/onnxruntime pull request 31981).
    "openvino_ep": Provider("OpenVINOExecutionProvider", _openvino, ("cpu",)),
    "cpu": Provider("CPUExecutionProvider"),
}
# OpenVINO by itself, without ONNX Runtime around it: any x86 or ARM CPU.
OPENVINO = "openvino"
# Those that compile a component for the shapes of its profiles.
COMPILING = ("tensorrt", "tensorrt_rtx")
PREFERENCE = ("tensorrt", "tensorrt_rtx", "cuda", OPENVINO, "openvino_ep", "cpu")


def serves_any_size(name: str) -> bool:
    """Whether a first call of any size makes a provider ready: a CPU's prepare the weights in it, a GPU's the size."""
    return name == OPENVINO or (name in PROVIDERS and not PROVIDERS[name].on_gpu)


def chain(name: str, settings: Settings, present: Sequence[str]) -> list[tuple[str, Options]]:
    """A provider and those that take what it leaves, as ONNX Runtime wants them: (name, options).

    Args:
        present: the names, ours, of the providers that ONNX Runtime has here.
    """
    names = [name, *(other for other in PROVIDERS[name].fallback if other in present)]
    return [(PROVIDERS[other].theirs, PROVIDERS[other].options(settings)) for other in names]


def context_settings(path: Path) -> Options:
    """Session settings that keep a compiled session in `path`, its engine in a file beside it.

    onnxruntime.ai/docs/execution-providers/EP-Context-Design.html
    """
    return {"ep.context_enable": "1", "ep.context_file_path": str(path), "ep.context_embed_mode": "0"}
