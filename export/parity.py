"""Compare an exported component with torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from engines.component import Arrays, Component, Precision
from engines.runner import open_runner
from export.errors import ParityError
from export.to_onnx import example_inputs

# Largest difference that is accepted from torch fp32, by precision and component: absolute, and for values above one
# relative. A component that is not named has the limit of a UNet.
LIMITS: dict[Precision, dict[str, float]] = {
    "fp32": {"text_encoder": 1e-4, "text_encoder_2": 1e-4, "vae_encoder": 1e-4, "vae_decoder": 1e-4},
    "fp16": {"text_encoder": 2e-2, "text_encoder_2": 2e-2, "vae_encoder": 1e-1, "vae_decoder": 4e-2},
    "bf16": {"text_encoder": 1e-1, "text_encoder_2": 1e-1, "vae_encoder": 4e-1, "vae_decoder": 2e-1},
}
UNET_LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
# In latents. A second resolution is tried where it takes seconds; a UNet of full size takes minutes at 768.
QUICK_AREA = 32 * 32
LOWER = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Case:
    """Feeds of a component, and what torch in fp32 makes of them."""

    latent: tuple[int, int]
    feeds: Arrays
    outputs: Arrays


class Raised(TorchFunctionMode):
    """Every operation in fp32, with weights that stay in their lower type: each is raised for its operation alone.

    So the fp32 reference of a network of fp16 weights takes little more memory than the network.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            value = func(*args)
            return _raise(value) if isinstance(value, torch.dtype) else value
        args, kwargs = tree_map(_raise, (args, kwargs or {}))
        return func(*args, **kwargs)


def _raise(value: Any) -> Any:
    """Tensors of a lower type, and the lower types themselves, as fp32."""
    if isinstance(value, torch.Tensor) and value.dtype in LOWER:
        return value.float()
    return torch.float32 if isinstance(value, torch.dtype) and value in LOWER else value


def limit_of(component: Component) -> float:
    return LIMITS[component.precision].get(component.name, UNET_LIMITS[component.precision])


def references(network: nn.Module, component: Component, latents: list[tuple[int, int]]) -> list[Case]:
    """What torch computes in fp32, whatever type the network's weights have.

    Args:
        latents: (height, width) to try: the smallest with two rows, others with one and only where that is quick.
    """
    smallest, *others = sorted(latents, key=lambda size: size[0] * size[1])
    tried = [smallest, *(size for size in others if size[0] * size[1] <= QUICK_AREA)]
    return [_reference(network, component, latent, case) for case, latent in enumerate(tried)]


def _reference(network: nn.Module, component: Component, latent: tuple[int, int], case: int) -> Case:
    sizes = {"rows": 1 if case else 2, "tokens": 77, "height": latent[0], "width": latent[1]}
    inputs = example_inputs(component.inputs, sizes, seed=case + 1)
    with torch.no_grad(), Raised():
        outputs = network(**inputs)
    values = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    named = {spec.name: value.numpy() for spec, value in zip(component.outputs, values, strict=True)}
    return Case(latent, {name: value.numpy() for name, value in inputs.items()}, named)


def compare(cases: list[Case], component: Component, folder: Path) -> dict[str, float]:
    """Largest and mean difference between torch in fp32 and ONNX Runtime's CPU provider.

    Returns:
        `max_abs` and `mean_abs`, absolute; `max_scaled`, relative for values above one, which the `limit` is for.

    Raises:
        ParityError: a difference above the limit, or a value that is not finite.
    """
    with _runnable(component, folder) as runnable:
        runner = open_runner(runnable, folder, provider="cpu")
    largest, scaled, means = 0.0, 0.0, []
    for case in cases:
        outputs = runner.infer(case.feeds)
        for name, reference in case.outputs.items():
            difference = np.abs(outputs[name] - reference)
            if not np.isfinite(difference).all():
                raise ParityError(
                    f"{component.name} gives values that are not finite in {name} for "
                    f"{case.latent[0]}x{case.latent[1]} latents; export with fp32"
                )
            largest = max(largest, float(difference.max()))
            scaled = max(scaled, float((difference / np.maximum(1, np.abs(reference))).max()))
            means.append(float(difference.mean()))
    limit = limit_of(component)
    if scaled > limit:
        raise ParityError(
            f"{component.name} differs from torch by {scaled:.2g}, more than {limit:.2g}; "
            "use the versions of the lock file, or export with fp32"
        )
    return {"max_abs": largest, "mean_abs": float(np.mean(means)), "max_scaled": scaled, "limit": limit}


@contextmanager
def _runnable(component: Component, folder: Path) -> Iterator[Component]:
    """The component, or in its place the same graph in fp32 with every result rounded: the CPU provider lacks bf16."""
    if component.precision != "bf16":
        yield component
        return
    import onnx_ir

    from export.rounding import emulate

    model = onnx_ir.load(folder / component.file)
    emulate(model)
    # Beside the original, whose external data it shares.
    stand_in = folder / f"{component.name}.rounded.onnx"
    onnx_ir.save(model, stand_in)
    try:
        yield dataclasses.replace(component, file=stand_in.name)
    finally:
        stand_in.unlink()
