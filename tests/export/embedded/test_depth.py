"""The depth that pictures are drawn with, that the estimator sees and that the UNet takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionDepth2ImgPipeline
from PIL import Image
from transformers import DPTForDepthEstimation

from export.embedded.depth import SIDE, depth_channel, depth_maps, new_estimator, new_processor, train_estimator
from export.embedded.training import Plan
from export.embedded.world import Scene, Thing, draw_depth

NEAR_AND_FAR = Scene(
    "black", (Thing("square", "red", 40, 64, 24), Thing("square", "white", 88, 64, 24)), relation="above"
)


def test_the_background_is_far_and_later_objects_are_nearer() -> None:
    depth = draw_depth(NEAR_AND_FAR, 128)
    assert (depth.shape, depth.dtype.name) == ((128, 128), "uint8")
    assert [depth[64, x] for x in (2, 40, 88)] == [0, 128, 255]
    assert set(np.unique(depth[64, 24:56])) == {128}


def test_the_nearer_object_hides_the_farther() -> None:
    things = (Thing("square", "red", 60, 64, 24), Thing("square", "white", 70, 64, 24))
    depth = draw_depth(Scene("black", things), 128)
    assert depth[64, 65] == 255
    assert depth[64, 42] == 128


def test_holes_are_as_far_as_the_background() -> None:
    depth = draw_depth(Scene("black", (Thing("ring", "red", 64, 64, 31),)), 128)
    assert depth[64, 64] == 0
    assert depth.max() == 128


def test_maps_are_drawn_at_any_size_from_0_to_1() -> None:
    small, large = (depth_maps([NEAR_AND_FAR], pixels)[0] for pixels in (64, 192))
    assert (small.shape, large.shape) == ((64, 64), (192, 192))
    torch.testing.assert_close(small, large.unfold(0, 3, 3).unfold(1, 3, 3).mean(dim=(-1, -2)), rtol=0, atol=0.02)


@pytest.mark.parametrize("side", [16, 24])
def test_the_channel_is_what_the_pipeline_makes_of_a_map(side: int) -> None:
    maps = depth_maps([NEAR_AND_FAR, Scene("black", NEAR_AND_FAR.things[:1])])
    pipeline = StableDiffusionDepth2ImgPipeline.__new__(StableDiffusionDepth2ImgPipeline)
    object.__setattr__(pipeline, "vae_scale_factor", 8)
    pictures = [Image.new("RGB", (8 * side, 8 * side))] * 2
    theirs = pipeline.prepare_depth_map(pictures, maps, 2, False, torch.float32, "cpu")
    assert torch.equal(depth_channel(maps, side), theirs)


def test_the_estimator_gives_a_map_of_its_own_side() -> None:
    torch.manual_seed(0)
    estimator = new_estimator().eval()
    picture = Image.fromarray(np.full((50, 90, 3), 255, np.uint8))
    pixels = new_processor()(images=picture, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, SIDE, SIDE)
    torch.testing.assert_close(pixels, torch.ones_like(pixels))
    with torch.no_grad():
        depth = estimator(pixels).predicted_depth
    assert depth.shape == (1, SIDE, SIDE)
    assert depth.max() > 0
    assert 2 * sum(parameter.numel() for parameter in estimator.parameters()) < 0.6e6


def test_the_estimator_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("SEEN", 2), ("ESTIMATOR_BATCH", 2)):
        monkeypatch.setattr(f"export.embedded.depth.{name}", few)
    plan = Plan("estimator", steps=60, learning_rate=3e-3, warmup=5, log_every=10)
    estimator = train_estimator(tmp_path, plan)
    assert isinstance(estimator, DPTForDepthEstimation)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "estimator.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
