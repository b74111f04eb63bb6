"""Variants are ordinary diffusers folders that share the base's files byte for byte."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionDepth2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionUpscalePipeline
from PIL import Image

from engines.component import Task
from export.checkpoint import Checkpoint
from export.embedded import variants
from export.embedded.autoencoder import shallower_vae
from export.embedded.depth import new_depth_unet, new_estimator
from export.embedded.finetuning import BASE_FOLDER, Base, adapted_unet
from export.embedded.upscaler import new_upscaler

TASKS: dict[str, Task] = {"inpainting": "inpainting", "depth": "depth", "upscaler": "upscaling"}
OWN = {
    "inpainting": {"unet"},
    "depth": {"unet", "depth_estimator", "feature_extractor"},
    "upscaler": {"unet", "vae", "scheduler", "low_res_scheduler"},
}
PIPELINES = {
    "inpainting": StableDiffusionInpaintPipeline,
    "depth": StableDiffusionDepth2ImgPipeline,
    "upscaler": StableDiffusionUpscalePipeline,
}
LIMIT = 8e6
PUBLISHED = sorted(BASE_FOLDER.parent.glob(f"{BASE_FOLDER.name}-*"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every variant as it is published, before it has learned anything."""
    base, made = Base.load(), {}
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "train_inpainting", lambda base, work: adapted_unet(base.unet, 9))
        patch.setattr(variants, "train_depth", lambda base, work: new_depth_unet(base))
        patch.setattr(variants, "train_estimator", lambda work: new_estimator())
        patch.setattr(variants, "train_upscaler", lambda base, work: (shallower_vae(base.vae), new_upscaler()))
        patch.setattr(variants, "reconstruction_psnr", lambda vae, pictures: 0.0)
        for name, make in variants.VARIANTS.items():
            folder = made[name] = tmp_path_factory.mktemp(name)
            (folder / "README.md").write_text("stays")
            make(base, folder, folder)
    return made


@pytest.fixture(params=[*TASKS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_folder(folder: Path, name: str) -> None:
    """What holds for every variant, trained or not."""
    opened = Checkpoint.open(str(folder))
    assert (opened.task, opened.native_resolution) == (TASKS[name], 128)
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= set(opened.parts)
    base, ours = files(BASE_FOLDER), files(folder)
    shared = [file for file in base if Path(file).parts[0] in set(opened.parts) - OWN[name]]
    assert {Path(file).parts[0] for file in shared} >= {"text_encoder", "tokenizer"}
    assert all(ours[file] == base[file] for file in shared)
    own = {file: content for file, content in ours.items() if file.endswith(".safetensors") and file not in shared}
    assert {Path(file).parts[0] for file in own} <= OWN[name]
    assert sum(map(len, own.values())) < LIMIT
    for part in {Path(file).parts[0] for file in own}:
        assert {value.dtype for value in opened.network(part, "fp16").state_dict().values()} == {torch.float16}
        opened.network(part)


def test_a_published_variant_is_small_and_shares_the_bases_files(folders: dict[str, Path], name: str) -> None:
    check_folder(folders[name], name)
    assert (folders[name] / "README.md").read_text() == "stays"


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_projects_own_variants_are_so_too(folder: Path) -> None:
    check_folder(folder, folder.name.removeprefix(f"{BASE_FOLDER.name}-"))


def test_diffusers_reads_it_as_what_it_is(folders: dict[str, Path], name: str) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders[name], torch_dtype=torch.float32)
    assert type(pipeline) is PIPELINES[name]
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (64, 64), "red")
    inputs: dict[str, Any] = {"mask_image": Image.new("L", (64, 64), 255)} if name == "inpainting" else {}
    if name != "upscaler":
        inputs["strength"] = 1.0
    else:
        picture = picture.resize((16, 16))
    if name == "depth":
        inputs["depth_map"] = torch.linspace(0, 1, 64 * 64).reshape(1, 64, 64)
    drawn = pipeline("a red circle", image=picture, num_inference_steps=1, output_type="np", **inputs).images
    assert drawn.shape[-3:-1] == ((64, 64) if name != "inpainting" else (128, 128))


def test_the_upscaler_says_its_limits_and_schedules(folders: dict[str, Path]) -> None:
    folder = folders["upscaler"]
    assert json.loads((folder / "model_index.json").read_text())["max_noise_level"] == 350
    for part in ("scheduler", "low_res_scheduler"):
        schedule = json.loads((folder / part / "scheduler_config.json").read_text())
        assert (schedule["beta_start"], schedule["beta_end"]) == (0.0001, 0.02)
        assert schedule["beta_schedule"] == "scaled_linear"
        assert schedule["prediction_type"] == ("v_prediction" if part == "scheduler" else "epsilon")


def test_the_processor_has_a_name_that_every_transformers_knows(folders: dict[str, Path]) -> None:
    index = json.loads((folders["depth"] / "model_index.json").read_text())
    assert index["feature_extractor"] == ["transformers", "DPTImageProcessor"]
