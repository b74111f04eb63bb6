"""Compare an exported component with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from engines.component import Component
from engines.runner import open_runner
from export.errors import ParityError
from export.to_onnx import example_inputs

# Largest absolute difference that is accepted from torch fp32, by precision and component.
LIMITS = {
    "fp32": {"text_encoder": 1e-4, "unet": 1e-3, "vae_encoder": 1e-4, "vae_decoder": 1e-4},
    "fp16": {"text_encoder": 2e-2, "unet": 5e-2, "vae_encoder": 1e-1, "vae_decoder": 4e-2},
}


def compare(network: nn.Module, component: Component, folder: Path, latents: list[tuple[int, int]]) -> dict[str, float]:
    """Largest and mean absolute difference between torch fp32 and ONNX Runtime's CPU provider.

    Args:
        network: the component in torch, fp32.
        latents: (height, width) of the latents to try; the first with two rows, the others with one.

    Raises:
        ParityError: a difference above the limit, or a value that is not finite.
    """
    runner = open_runner(component, folder, provider="cpu")
    largest, means = 0.0, []
    for case, (height, width) in enumerate(latents):
        sizes = {"rows": 1 if case else 2, "tokens": 77, "height": height, "width": width}
        inputs = example_inputs(component.inputs, sizes, seed=case + 1)
        with torch.no_grad():
            reference = network(**inputs).numpy()
        output = runner.infer({k: v.numpy() for k, v in inputs.items()})[component.outputs[0].name]
        difference = np.abs(output - reference)
        if not np.isfinite(difference).all():
            raise ParityError(
                f"{component.name} gives values that are not finite at {height}x{width}; export with fp32"
            )
        largest = max(largest, float(difference.max()))
        means.append(float(difference.mean()))
    limit = LIMITS[component.precision][component.name]
    if largest > limit:
        raise ParityError(
            f"{component.name} differs from torch by {largest:.2g}, more than {limit:.2g}; "
            "use the versions of the lock file, or export with fp32"
        )
    return {"max_abs": largest, "mean_abs": float(np.mean(means)), "limit": limit}
