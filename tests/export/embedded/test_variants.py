"""The trained variants do what they are for: a few of the judge's cases each."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import StableDiffusionDepth2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionUpscalePipeline
from PIL import Image

from bench.judging.judge import Judge
from export.embedded.depth import depth_maps
from export.embedded.finetuning import BASE_FOLDER
from export.embedded.tasks import TASKS_FILE, Case
from export.embedded.upscaler import reduced
from export.embedded.world import COLOURS, Scene, Thing, draw, silhouette

CASES: dict[str, list[Case]] = json.loads(TASKS_FILE.read_text(encoding="utf-8"))
STEPS = 12


def opened(kind: Any, name: str) -> Any:
    pipeline = kind.from_pretrained(BASE_FOLDER.with_name(f"{BASE_FOLDER.name}-{name}"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def scene_of(case: Case) -> Scene:
    return Scene(case["scene"]["background"], tuple(Thing(**thing) for thing in case["scene"]["things"]))


def pictures_of(cases: list[Case]) -> list[Image.Image]:
    return [Image.fromarray(draw(scene_of(case), case.get("pixels", 128))) for case in cases]


def noises(cases: list[Case]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed, _ in enumerate(cases)]


def psnr(ours: Image.Image, theirs: Image.Image, where: npt.NDArray[np.bool_] | None = None) -> float:
    errors = (np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)) ** 2
    return float(10 * np.log10(255**2 / (errors if where is None else errors[where]).mean()))


def test_inpainting_draws_what_is_asked_in_the_mask_and_leaves_the_rest() -> None:
    cases = CASES["inpainting"][:4]
    pictures, masks = pictures_of(cases), [Image.new("L", (128, 128)) for _ in cases]
    for mask, case in zip(masks, cases, strict=True):
        mask.paste(255, tuple(case["box"]))
    drawn = opened(StableDiffusionInpaintPipeline, "inpainting")(
        [case["prompt"] for case in cases],
        image=pictures,
        mask_image=masks,
        height=128,
        width=128,
        strength=1.0,
        guidance_scale=1.5,
        num_inference_steps=STEPS,
        generator=noises(cases),
    ).images
    judge = Judge()
    for case, image in zip(cases, drawn, strict=True):
        sight = judge.look(np.asarray(image.crop(tuple(case["box"]))))
        assert {"colour": sight.colour, "shape": sight.shape, "background": sight.background} == case["asked"]
    outside = [
        psnr(image, picture, np.asarray(mask) == 0) for image, picture, mask in zip(drawn, pictures, masks, strict=True)
    ]
    assert np.mean(outside) > 28


@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_depth_keeps_the_layout_and_takes_the_colours_from_the_prompt() -> None:
    cases = CASES["depth"][:3]
    drawn = opened(StableDiffusionDepth2ImgPipeline, "depth")(
        [case["prompt"] for case in cases],
        image=pictures_of(cases),
        strength=1.0,
        guidance_scale=1.5,
        num_inference_steps=STEPS,
        generator=noises(cases),
    ).images
    for case, image in zip(cases, drawn, strict=True):
        pixels = np.asarray(image, np.float64)
        names = list(COLOURS)
        nearest = np.stack([np.linalg.norm(pixels - COLOURS[name], axis=2) for name in names]).argmin(axis=0)
        things = [np.asarray(silhouette(thing, 128)) for thing in scene_of(case).things]
        for thing, seen in zip(things, case["asked"], strict=True):
            assert (nearest[thing] == names.index(seen["colour"])).mean() > 0.7
            assert (nearest[~np.any(things, axis=0)] == names.index(seen["background"])).mean() > 0.9


def test_the_depth_estimator_sees_what_was_drawn() -> None:
    pipeline = opened(StableDiffusionDepth2ImgPipeline, "depth")
    cases = CASES["depth"][:24]
    pixels = pipeline.feature_extractor(images=pictures_of(cases), return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = pipeline.depth_estimator(pixels).predicted_depth
    assert (seen - depth_maps([scene_of(case) for case in cases])).abs().mean() < 0.03


@pytest.mark.parametrize("case", CASES["upscaling"][:2], ids=lambda case: str(case["pixels"]))
def test_the_upscaler_beats_bicubic_by_2_decibels(case: Case) -> None:
    (picture,) = pictures_of([case])
    small = reduced(picture, Image.Resampling.BOX)
    (large,) = opened(StableDiffusionUpscalePipeline, "upscaler")(
        case["prompt"], image=small, noise_level=5, guidance_scale=1.0, num_inference_steps=20, generator=noises([case])
    ).images
    assert large.size == picture.size
    assert psnr(large, picture) > psnr(small.resize(picture.size, Image.Resampling.BICUBIC), picture) + 2
