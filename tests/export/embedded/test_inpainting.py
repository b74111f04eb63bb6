"""Masks of the inpainting variant, and what its UNet sees of a masked picture."""

import random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

from export.embedded.autoencoder import draw_all, new_vae
from export.embedded.inpainting import blob_about, box_about, draw_mask, grey_out, mask_all, scatter, strip
from export.embedded.world import CANVAS, Scene, Thing, silhouette, training_scene

THING = Thing("cross", "red", 40.0, 70.0, 20.0)


def scenes(count: int, seed: int = 1) -> list[Scene]:
    rng = random.Random(seed)
    return [training_scene(rng) for _ in range(count)]


def drawn(kind: object, seed: int) -> npt.NDArray[np.bool_]:
    assert callable(kind)
    image = Image.new("1", (CANVAS, CANVAS))
    kind(THING, random.Random(seed), ImageDraw.Draw(image))
    return np.asarray(image)


@pytest.mark.parametrize("seed", range(8))
def test_a_box_has_its_object_in_it_and_a_blob_most_of_it(seed: int) -> None:
    seen = np.asarray(silhouette(THING, CANVAS))
    assert drawn(box_about, seed)[seen].all()
    assert drawn(blob_about, seed)[seen].mean() > 0.75


def test_a_strip_is_all_beyond_one_of_four_lines() -> None:
    sides = set()
    for seed in range(40):
        mask = drawn(strip, seed)
        rows, columns = mask.all(axis=1), mask.all(axis=0)
        assert rows.all() ^ columns.all() or rows.any() ^ columns.any()
        line = rows if rows.any() and not columns.any() else columns
        assert 0.2 < line.mean() < 0.85
        assert np.count_nonzero(np.diff(line)) == 1
        sides.add((line is rows, bool(line[0])))
    assert len(sides) == 4


def test_scattered_masks_lie_anywhere() -> None:
    assert np.mean([drawn(scatter, seed) for seed in range(200)], axis=0).min() > 0.02


def test_masks_vary_and_follow_from_the_seed() -> None:
    def masks(seed: int) -> npt.NDArray[np.bool_]:
        rng = random.Random(seed)
        return np.stack([draw_mask(scene, rng) for scene in scenes(50)])

    assert (masks(1) == masks(1)).all()
    assert (masks(1) != masks(2)).any(axis=(1, 2)).mean() > 0.9
    assert 0.05 < masks(1).mean() < 0.6
    assert masks(1).any(axis=(1, 2)).mean() > 0.95


def test_a_mask_is_the_same_at_another_size() -> None:
    for scene in scenes(30):
        small, large = (draw_mask(scene, random.Random(3), pixels) for pixels in (128, 192))
        resized = np.asarray(Image.fromarray(small).resize((192, 192), Image.Resampling.NEAREST))
        assert (resized != large).mean() < 0.02


def test_unet_inputs_are_those_of_the_pipeline() -> None:
    """diffusers' own preparation of a mask and a masked picture is the oracle."""
    torch.manual_seed(0)
    vae = new_vae().eval()
    vae.register_to_config(scaling_factor=0.7)
    few = scenes(2)
    made = mask_all(vae, few, CANVAS)
    rng = random.Random(CANVAS)
    for index, scene in enumerate(few):
        mask = draw_mask(scene, rng)
        masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        their_mask = masks.preprocess(Image.fromarray(mask))
        picture = Image.fromarray(draw_all([scene], CANVAS)[0].permute(1, 2, 0).numpy())
        masked = VaeImageProcessor().preprocess(picture) * (their_mask < 0.5)
        with torch.no_grad():
            latents = vae.encode(masked).latent_dist.mean * 0.7
        small = torch.nn.functional.interpolate(their_mask, size=(CANVAS // 8, CANVAS // 8))
        assert torch.equal(made["masks"][index].float(), small[0])
        torch.testing.assert_close(made["kept"][index].float(), latents[0], rtol=2e-3, atol=2e-3)


def test_a_picture_that_is_masked_all_over_is_grey() -> None:
    torch.manual_seed(0)
    vae = new_vae().eval()
    pictures = draw_all(scenes(2), 64)
    everywhere = grey_out(vae, pictures, torch.ones(2, 64, 64, dtype=torch.bool))
    assert torch.equal(everywhere[0], everywhere[1])
    nowhere = grey_out(vae, pictures, torch.zeros(2, 64, 64, dtype=torch.bool))
    assert not torch.allclose(nowhere[0], everywhere[0])
