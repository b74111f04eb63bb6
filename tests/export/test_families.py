"""Every family's networks are traced and give what torch gives, narrow but with every part of the published ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.catalog import COMPONENTS
from engines.component import PipelineSpec, Precision
from engines.runner import open_runner
from export.architectures import ARCHITECTURES
from export.checkpoint import Checkpoint
from export.export import Options, export_checkpoint
from export.random_weights import write_random_checkpoint
from export.to_onnx import example_inputs
from export.wrappers import load_component
from tests.small_architectures import small

pytestmark = pytest.mark.slow


def checkpoint_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setitem(ARCHITECTURES, name, small(name))
    write_random_checkpoint(name, folder / name, 0)
    return Checkpoint.open(str(folder / name))


@pytest.mark.parametrize(
    ("name", "controlled", "precision"),
    [
        ("sd15-inpainting", False, "fp32"),
        ("sd15", True, "fp16"),
        ("sd2-depth", False, "fp16"),
        ("x4-upscaler", False, "fp16"),
        ("sdxl", True, "fp16"),
        ("sdxl", False, "bf16"),
        ("sdxl-refiner", False, "fp32"),
        ("controlnet-sd15", False, "fp16"),
        ("controlnet-sdxl", False, "fp32"),
    ],
)
def test_every_component_matches_torch(
    name: str, controlled: bool, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(name, tmp_path, monkeypatch)
    side = 16 * checkpoint.downscale
    spec = export_checkpoint(checkpoint, tmp_path / "export", Options([(side, side)], precision, controlled))
    assert spec == PipelineSpec.read(tmp_path / "export")
    assert tuple(spec.components) == COMPONENTS[checkpoint.family, checkpoint.task]
    for component in spec.components.values():
        assert 0 < component.parity["max_scaled"] <= component.parity["limit"]
    spec.verify(tmp_path / "export")


def test_a_controlnet_and_a_unet_meet_in_their_residuals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both exported alone, then together, against diffusers; no control is the UNet alone."""
    base = checkpoint_of("sd15", tmp_path, monkeypatch)
    control = checkpoint_of("controlnet-sd15", tmp_path, monkeypatch)
    specs = {
        "unet": export_checkpoint(base, tmp_path / "base", Options([(128, 128)], "fp32", True, ("unet",))),
        "controlnet": export_checkpoint(control, tmp_path / "control", Options([(128, 128)])),
    }
    unet = open_runner(specs["unet"].component("unet"), tmp_path / "base", "cpu")
    controlnet = open_runner(specs["controlnet"].component("controlnet"), tmp_path / "control", "cpu")
    given = example_inputs(controlnet.component.inputs, {"rows": 2, "tokens": 77, "height": 8, "width": 16})
    given["conditioning_scale"] = torch.tensor([0.0, 0.7])
    hints = {name: value.numpy() for name, value in given.items()}
    feeds = {name: hints[name] for name in ("sample", "timestep", "encoder_hidden_states")}
    drawn = unet.infer({**feeds, **controlnet.infer(hints)})["out_sample"]
    with torch.no_grad():
        sample, timestep, context = (given[name] for name in feeds)
        down, middle = control.network("")(sample, timestep, context, given["controlnet_cond"], return_dict=False)
        factor = given["conditioning_scale"].reshape(-1, 1, 1, 1)
        theirs = base.network("unet")(
            sample,
            timestep,
            context,
            down_block_additional_residuals=[residual * factor for residual in down],
            mid_block_additional_residual=middle * factor,
        ).sample
        alone = load_component(base, "unet")(sample, timestep, context)
    np.testing.assert_allclose(drawn, theirs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(drawn[0], alone[0], rtol=0, atol=1e-4)
    assert np.abs(drawn[1] - alone[1].numpy()).max() > 0.01
