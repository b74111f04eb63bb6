"""The demo's pictures and figures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from PIL import Image

from bench.demo import CAPTION, DEFAULTS, TILE, contact_sheet
from bench.examples import GALLERY, task_examples
from server.picture_files import PictureLimits
from server.request import Limits, Request
from server.request_pictures import measure


def test_gallery_requests_are_valid_and_unlike() -> None:
    limits = Limits(resolutions=((128, 128), (192, 192)))
    parsed = [Request.parse({k: [v] for k, v in {**DEFAULTS, **item}.items()}, limits) for item in GALLERY]
    assert len({request.prompt for request in parsed}) == len(GALLERY)
    assert {request.sampler for request in parsed} == {"euler", "euler_ancestral", "ddim", "dpmpp_2m"}
    assert {request.height for request in parsed} == {128, 192}


def test_examples_of_every_task_are_valid_for_the_checkpoints_that_are_loaded() -> None:
    base = Limits(resolutions=((128, 128), (192, 192)))
    models = {
        "": base,
        "inpainting": replace(base, task="inpainting"),
        "depth": replace(base, task="depth", estimates_depth=True),
        "upscaler": replace(base, task="upscaling", enlarges=4, max_noise_level=350),
    }
    tasks = set()
    for example in task_examples(models):
        tensors = {name: [value] for name, value in {**DEFAULTS, **example.fields}.items()}
        limits = models[str(example.fields.get("model", ""))]
        request = Request.parse(tensors, limits, partial(measure, limits=PictureLimits()))
        tasks.add(request.task)
        assert bool(example.shown) == bool(request.pictures)
    assert tasks == {"text_to_image", "image_to_image", "inpainting", "outpainting", "depth_to_image", "upscaling"}
    assert {example.fields.get("model", "") for example in task_examples(())} == {""}


def test_contact_sheet_shows_every_picture() -> None:
    colours = ["red", "lime", "blue", "black", "cyan", "magenta"]
    sheet = contact_sheet([(f"a {name} square", Image.new("RGB", (64, 64), name)) for name in colours], columns=5)
    assert sheet.size == (5 * (TILE + 8) + 8, 2 * (TILE + CAPTION) + 8)
    for i, name in enumerate(colours):
        centre = (8 + (i % 5) * (TILE + 8) + TILE // 2, 8 + (i // 5) * (TILE + CAPTION) + TILE // 2)
        assert sheet.getpixel(centre) == Image.new("RGB", (1, 1), name).getpixel((0, 0))
