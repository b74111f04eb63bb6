"""The upscaler's pairs of pictures, its UNet and the noise on what it sees."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from export.embedded.autoencoder import draw_all, encode, new_vae, scenes, shallower_vae
from export.embedded.finetuning import Base
from export.embedded.training import Plan
from export.embedded.upscaler import (
    LATENT_GAIN,
    MOST_NOISE_LEVEL,
    PART,
    make_latents,
    new_low_res_schedule,
    new_upscaler,
    pairs_of,
    parts_of,
    reduced,
    train_decoder,
    unlike_small_picture,
)
from export.embedded.world import CANVAS


def test_pairs_are_the_same_pictures_large_and_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = shallower_vae(new_vae()).eval()
    vae.register_to_config(scaling_factor=0.5)
    pairs = pairs_of(vae, 3, 64, 8, tmp_path)
    pictures = draw_all(pairs.scenes, 64)
    assert pairs.scenes == scenes(3, 8)
    assert (pairs.latents.shape, pairs.small.shape) == ((3, 4, 16, 16), (2, 3, 3, 16, 16))
    torch.testing.assert_close(pairs.latents, encode(vae, pictures) * 0.5, rtol=2e-3, atol=2e-3)
    averaged = torch.nn.functional.avg_pool2d(pictures.float(), 4)
    assert (averaged - pairs.small[0].float()).abs().max() <= 1
    assert not torch.equal(pairs.small[0], pairs.small[1])
    assert (averaged - pairs.small[1].float()).abs().mean() < 4


def test_pairs_are_kept(tmp_path: Path) -> None:
    vae = shallower_vae(new_vae()).eval()
    first = pairs_of(vae, 2, 32, 8, tmp_path)
    other = pairs_of(shallower_vae(new_vae()).eval(), 2, 32, 8, tmp_path)
    assert torch.equal(first.latents, other.latents)


def test_parts_are_the_same_of_the_latent_and_the_small_picture() -> None:
    drawn = scenes(40, 3)
    places = torch.arange(32 * 32).reshape(1, 1, 32, 32).expand(40, 1, 32, 32)
    latents, small = parts_of(drawn, PART, places, places + 5, random.Random(1))
    assert latents.shape == small.shape == (40, 1, PART, PART)
    assert torch.equal(latents + 5, small)
    assert (latents[:, 0, 1:] - latents[:, 0, :-1] == 32).all()
    assert len({int(part[0, 0, 0]) for part in latents}) > 20
    for scene, part in zip(drawn, latents, strict=True):
        top, left = divmod(int(part[0, 0, 0]), 32)
        near = [abs(4 * left + 32 - thing.x) <= 36 and abs(4 * top + 32 - thing.y) <= 36 for thing in scene.things]
        assert any(near)


def test_parts_of_pictures_of_unlike_size_cover_the_same() -> None:
    drawn = scenes(5, 3)
    small = torch.arange(32 * 32).reshape(1, 1, 32, 32).expand(5, 1, 32, 32)
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    one, four = parts_of(drawn, 12, small, large, random.Random(1))
    assert four.shape == (5, 1, 48, 48)
    assert torch.equal(one.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3), four)


def test_the_decoder_learns_from_what_the_unet_makes_and_the_encoder_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, unet = shallower_vae(new_vae()).eval(), new_upscaler().eval()
    vae.register_to_config(scaling_factor=0.5)
    pairs = pairs_of(vae, 4, CANVAS, 8, tmp_path)
    made = make_latents(Base.load(), unet, pairs, 4, steps=1)
    assert made.shape == pairs.latents.shape
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    train_decoder(vae, pairs, made.float(), tmp_path, Plan("decoder4", steps=3, learning_rate=1e-3))
    changed = {name.split(".")[0] for name, weight in vae.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_a_latent_is_like_the_small_picture_in_three_channels_alone() -> None:
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    small = LATENT_GAIN * torch.nn.functional.avg_pool2d(pixels, 4)
    latents = torch.cat([small, torch.randn(2, 1, 4, 4)], dim=1)
    assert unlike_small_picture(1.0, latents, pixels) == 0
    torch.testing.assert_close(unlike_small_picture(0.5, latents + 2, pixels), torch.tensor(2.0))


def test_a_reduced_picture_has_a_quarter_of_the_sides() -> None:
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    small = np.asarray(reduced(picture, Image.Resampling.BOX))
    assert small.shape == (2, 2)
    assert abs(int(small[0, 0]) - np.asarray(picture)[:4, :4].mean()) <= 0.5


def test_the_unet_is_told_the_noise_level_and_the_text() -> None:
    torch.manual_seed(1)
    unet = new_upscaler().eval()
    sample, context = torch.randn(1, 7, 16, 16), torch.randn(2, 77, 128)
    with torch.no_grad():
        told = [
            unet(sample, 500, context[text : text + 1], class_labels=torch.tensor([level])).sample
            for level, text in ((20, 0), (300, 0), (20, 1))
        ]
    assert told[0].shape == (1, 4, 16, 16)
    assert not torch.allclose(told[0], told[1])
    assert not torch.allclose(told[0], told[2])


def test_the_unet_and_the_vae_are_small() -> None:
    networks = new_upscaler(), shallower_vae(new_vae())
    assert 2 * sum(parameter.numel() for network in networks for parameter in network.parameters()) < 7.9e6


def test_noise_levels_are_those_of_stable_diffusions_upscaler() -> None:
    """Level 20 leaves 0.99865 of the picture, 350 leaves 0.80030, as Stability AI published them."""
    signal = new_low_res_schedule().alphas_cumprod.sqrt()
    torch.testing.assert_close(signal[[20, MOST_NOISE_LEVEL]], torch.tensor([0.99865, 0.80030]), rtol=0, atol=1e-5)
