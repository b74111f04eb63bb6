"""The GPU and the TensorRT at hand, asked of NVIDIA's own libraries: all that a machine that runs plans must have."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util

from engines.errors import ProviderError
from engines.manifest import COMPILERS, Capability, CompilerName, Machine

# CUDA driver API: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
CAPABILITY_ATTRIBUTES = (75, 76)
# NvInferRuntime.h: a function for each part of the version, from 10.0 on.
TENSORRT_MAJORS = (11, 10)
VERSION_PARTS = ("Major", "Minor", "Patch", "Build")


def device_capability() -> Capability | None:
    """The compute capability of the first GPU, asked of the CUDA driver; none without either."""
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        device, value = ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
            numbers = []
            for attribute in CAPABILITY_ATTRIBUTES:
                driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
                numbers.append(value.value)
            return numbers[0], numbers[1]
    return None


def tensorrt_version() -> str | None:
    """The version of the TensorRT library itself, which Triton's image has without the Python package; none without."""
    for major in TENSORRT_MAJORS:
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(f"libnvinfer.so.{major}")
            return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in VERSION_PARTS)
    return None


def this_machine(name: str = "auto") -> Machine:
    """Where plans of that compiler would run, if here. What runs them is enough: nothing of the compiler is loaded.

    Raises:
        ProviderError: there is no such library here.
    """
    for compiler in COMPILERS:
        if name in ("auto", compiler) and (version := _runtime_version(compiler)):
            return Machine(compiler, version, device_capability())
    asked = "no TensorRT is here" if name == "auto" else f"{name} is not here, or runs no plans"
    raise ProviderError(f"{asked}; install the compiler of the plans ({' or '.join(COMPILERS)}), or leave --plans out")


def _runtime_version(compiler: CompilerName) -> str | None:
    if importlib.util.find_spec(compiler) is not None:
        return str(importlib.import_module(compiler).__version__)
    return tensorrt_version() if compiler == "tensorrt" else None
