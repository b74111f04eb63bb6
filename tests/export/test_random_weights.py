"""Checkpoints of random weights are like any other: they load, are told apart, and give finite values."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from engines.catalog import components_of
from engines.component import resolve
from export import random_weights
from export.architectures import ARCHITECTURES
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.random_weights import write_random_checkpoint
from export.to_onnx import example_inputs
from export.wrappers import load_component
from tests.small_architectures import small

KINDS = {
    "sd15": ("sd1", "text_to_image"),
    "sd15-inpainting": ("sd1", "inpainting"),
    "sd21": ("sd2", "text_to_image"),
    "sd2-depth": ("sd2", "depth"),
    "sd2-inpainting": ("sd2", "inpainting"),
    "x4-upscaler": ("x4", "upscaling"),
    "sdxl": ("sdxl", "text_to_image"),
    "sdxl-refiner": ("sdxl_refiner", "refining"),
    "controlnet-sd15": ("controlnet", "control"),
    "controlnet-sdxl": ("controlnet", "control"),
}


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A narrow checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("random") / request.param
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(ARCHITECTURES, request.param, small(request.param))
        write_random_checkpoint(request.param, folder, 0)
    return Checkpoint.open(str(folder))


def test_checkpoints_are_told_apart(checkpoint: Checkpoint) -> None:
    assert (checkpoint.family, checkpoint.task) == KINDS[checkpoint.folder.name]


def test_networks_give_finite_values_of_the_shapes_in_the_catalogue(checkpoint: Checkpoint) -> None:
    found = components_of(checkpoint.family, checkpoint.task, checkpoint.widths)
    sizes = {"rows": 2, "tokens": 77, "height": 8, "width": 16}
    for name, (inputs, outputs) in found.items():
        with torch.no_grad():
            given = load_component(checkpoint, name)(**example_inputs(inputs, sizes))
        values = (given,) if isinstance(given, torch.Tensor) else given
        shapes = [tuple(resolve(dim, sizes) for dim in spec.shape) for spec in outputs]
        assert [tuple(value.shape) for value in values] == shapes, name
        assert all(np.isfinite(value.numpy()).all() and value.dtype == torch.float32 for value in values), name


def test_half_of_the_precision_is_enough_for_finite_values(checkpoint: Checkpoint) -> None:
    name = "controlnet" if checkpoint.is_controlnet else "unet"
    inputs, _ = components_of(checkpoint.family, checkpoint.task, checkpoint.widths)[name]
    with torch.no_grad():
        given = load_component(checkpoint, name, "fp16")(
            **example_inputs(inputs, {"rows": 1, "tokens": 77, "height": 8, "width": 16})
        )
    assert all(value.isfinite().all() for value in given)


def test_tokenizers_have_clips_ids(checkpoint: Checkpoint) -> None:
    for part in checkpoint.tokenizers:
        tokenizer = checkpoint.tokenizer(part)
        assert tokenizer.get_vocab_size() == 49408
        words = ("<|startoftext|>", "<|endoftext|>", "!")
        assert [tokenizer.token_to_id(word) for word in words] == [49406, 49407, 0]
        assert tokenizer.decode(tokenizer.encode("A red circle, ünder").ids).replace(" ", "") == "aredcircle,ünder"


def test_what_fills_prompts_up_is_as_published(checkpoint: Checkpoint) -> None:
    openclip = {"text_encoder": checkpoint.family in ("sd2", "x4"), "text_encoder_2": True}
    for part, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        if part in checkpoint.tokenizers:
            assert checkpoint.pad_token(part) == ("!" if openclip[encoder] else "<|endoftext|>")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "controlnet-sd15", small("controlnet-sd15"))


def weights(folder: Path) -> bytes:
    return (folder / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.usefixtures("narrow")
def test_the_same_seed_gives_the_same_weights_and_another_others(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_checkpoint("controlnet-sd15", tmp_path / folder, seed)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


@pytest.mark.usefixtures("narrow")
def test_weights_are_halves_that_vary_by_their_fan_in(tmp_path: Path) -> None:
    write_random_checkpoint("controlnet-sd15", tmp_path / "c", 0)
    with safe_open(tmp_path / "c" / "diffusion_pytorch_model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    wide = tensors["mid_block.resnets.0.conv1.weight"].float()
    assert wide.std().item() == pytest.approx((32 * 9) ** -0.5, rel=0.05)
    norm = tensors["mid_block.resnets.0.norm1.weight"].float()
    assert norm.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("narrow")
def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    write_random_checkpoint("controlnet-sd15", tmp_path / "c", 0)
    before = (tmp_path / "c" / "config.json").stat().st_mtime_ns
    write_random_checkpoint("controlnet-sd15", tmp_path / "c", 0)
    assert (tmp_path / "c" / "config.json").stat().st_mtime_ns == before


@pytest.mark.usefixtures("narrow")
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(
        ExportError, match=r"exists and is not controlnet-sd15, seed 0; remove it, or give another --out"
    ):
        write_random_checkpoint("controlnet-sd15", tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("narrow")
def test_a_checkpoint_that_fails_half_way_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(random_weights, "_draw", full)
    with pytest.raises(ExportError, match=r"c cannot be written \(No space left on device\); give another --out"):
        write_random_checkpoint("controlnet-sd15", tmp_path / "c", 0)
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "sd21", small("sd21"))
    write_random_checkpoint("sd21", tmp_path / "c", 3)
    assert json.loads((tmp_path / "c" / "model_index.json").read_text())["_made_from"] == "sd21, seed 3"
