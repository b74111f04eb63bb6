"""The GPU at hand, asked of the CUDA driver itself, since that is all a machine that runs plans must have."""

from __future__ import annotations

import contextlib
import ctypes

from engines.manifest import Capability

# CUDA driver API: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
CAPABILITY_ATTRIBUTES = (75, 76)


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
