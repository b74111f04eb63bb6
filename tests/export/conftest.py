"""The tiny checkpoint's UNet in every precision, with the islands of Stable Diffusion 2."""

from pathlib import Path

import pytest

from engines.catalog import components_of
from engines.component import Component, PipelineSpec, Precision
from engines.precision import PrecisionPlan, plan_for


def trace(checkpoint: Path, name: str, folder: Path, plan: PrecisionPlan) -> Component:
    """One component as `<name>.onnx` in `folder`."""
    from export.checkpoint import Checkpoint
    from export.to_onnx import export_onnx
    from export.wrappers import load_component

    opened = Checkpoint.open(str(checkpoint))
    inputs, outputs = components_of("sd2", "text_to_image", opened.widths)[name]
    export_onnx(load_component(opened, name, plan.dtype), inputs, outputs, folder / f"{name}.onnx", plan)
    return Component(name, f"{name}.onnx", inputs, outputs, plan.dtype)


@pytest.fixture(scope="session")
def unets(
    tiny_checkpoint: Path, tiny_export: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Precision, tuple[Component, Path]]:
    """By precision; tests that change one take a copy."""
    traced: dict[Precision, tuple[Component, Path]] = {
        "fp32": (PipelineSpec.read(tiny_export).component("unet"), tiny_export)
    }
    for precision in ("fp16", "bf16"):
        folder = tmp_path_factory.mktemp(precision)
        traced[precision] = (trace(tiny_checkpoint, "unet", folder, plan_for("sd2", "unet", precision)), folder)
    return traced


@pytest.fixture(scope="session")
def whole_decoder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Path]:
    """The VAE decoder as an fp16 export of SDXL has it."""
    folder = tmp_path_factory.mktemp("whole")
    return trace(tiny_checkpoint, "vae_decoder", folder, plan_for("sdxl", "vae_decoder", "fp16")), folder
