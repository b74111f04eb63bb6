"""The depth variant: the embedded UNet with a fifth channel, and the estimator that sees depth in a picture."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from export.embedded.autoencoder import draw_all, to_network
from export.embedded.denoiser import (
    CAPTION_DROPOUT,
    LARGE,
    LARGE_SCENES,
    SCENES,
    UNET_BATCH,
    latent_set,
    new_schedule,
    noise_at_random,
)
from export.embedded.finetuning import Base, adapted_unet, loss_beside
from export.embedded.training import Plan, train
from export.embedded.world import CANVAS, Scene, caption, draw_depth, training_scene

UNET_PLAN = Plan("depth", steps=800, learning_rate=3e-4, warmup=100, save_every=100)
ESTIMATOR_PLAN = Plan("estimator", steps=3000, learning_rate=1e-3, save_every=250)
CHANNELS = 5
SIDE = 64
ESTIMATOR_BATCH, SEEN = 16, 12000
EVERY_LARGE = 6
# Pictures that were generated, or compressed, are not as clean as drawn ones.
MOST_NOISE = 0.08


def new_estimator() -> DPTForDepthEstimation:
    """A dense prediction transformer for pictures of 64 x 64, four layers deep, about 250,000 parameters."""
    return DPTForDepthEstimation(
        DPTConfig(
            image_size=SIDE,
            patch_size=4,
            hidden_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=192,
            backbone_out_indices=[1, 2, 3],
            # Patches of four make maps of 16, 8 and 4; each fusion and the head double them, so 64 comes out.
            reassemble_factors=[1, 0.5, 0.25],
            neck_hidden_sizes=[16, 16, 40],
            fusion_hidden_size=24,
            layer_norm_eps=1e-5,  # the default is nothing in fp16
        )
    )


def new_processor() -> DPTImageProcessor:
    """Squashes pictures to the estimator's side and to [-1, 1]."""
    return DPTImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )


def depth_maps(scenes: list[Scene], pixels: int = SIDE) -> torch.Tensor:
    """(n, pixels, pixels) inverse depth in [0, 1]; see `world.draw_depth`."""
    return torch.from_numpy(np.stack([draw_depth(scene, pixels) for scene in scenes])).float() / 255


def depth_channel(maps: torch.Tensor, side: int) -> torch.Tensor:
    """(n, 1, side, side) in [-1, 1] from (n, h, w) of any range: what the UNet takes, made as diffusers makes it."""
    small = functional.interpolate(maps[:, None], size=(side, side), mode="bicubic", align_corners=False)
    least, most = (edge(small, dim=(1, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
    return 2 * (small - least) / (most - least) - 1


def new_depth_unet(base: Base) -> UNet2DConditionModel:
    """The adapted UNet with attention on the way up alone, which makes room for the estimator."""
    return adapted_unet(base.unet, CHANNELS, down_block_types=("DownBlock2D",) * 3)


def train_estimator(folder: Path, plan: Plan = ESTIMATOR_PLAN) -> DPTForDepthEstimation:
    """MSE and a little L1 of inverse depth, on pictures with a little noise."""
    torch.manual_seed(6)
    estimator = new_estimator()
    # Most of a picture is at 0: through the head's last ReLU everything would soon be, and learn no more.
    estimator.head.head[-1] = nn.LeakyReLU(0.2)
    rng = random.Random(6)
    scenes = [training_scene(rng) for _ in range(SEEN)]
    pictures, truths = draw_all(scenes, SIDE), depth_maps(scenes)

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(SEEN, (ESTIMATOR_BATCH,), generator=generator)
        clean = to_network(pictures[chosen])
        strength = MOST_NOISE * torch.rand(ESTIMATOR_BATCH, 1, 1, 1, generator=generator)
        noisy = clean + strength * torch.randn(clean.shape, generator=generator)
        guess = estimator(noisy).predicted_depth
        return functional.mse_loss(guess, truths[chosen]) + 0.1 * functional.l1_loss(guess, truths[chosen])

    weights = train(plan, nn.ModuleDict({"estimator": estimator}), loss_at, folder)
    estimator.load_state_dict(weights["estimator"])
    estimator.head.head[-1] = nn.ReLU()
    return estimator.eval()


def train_depth(base: Base, folder: Path, plan: Plan = UNET_PLAN) -> UNet2DConditionModel:
    """v-prediction beside the true depth of the picture."""
    torch.manual_seed(5)
    unet = new_depth_unet(base)
    schedule = new_schedule()
    sets = []
    for total, pixels, seed in ((SCENES, CANVAS, 3), (LARGE_SCENES, LARGE, 4)):
        scenes, latents, _ = latent_set(base.vae, total, pixels, seed, folder)
        parts = [scenes[start : start + 500] for start in range(0, total, 500)]
        depths = torch.cat([depth_channel(depth_maps(part), pixels // 8) for part in parts])
        sets.append((scenes, latents, depths))

    def loss_at(step: int) -> torch.Tensor:
        large = step % EVERY_LARGE == 0
        scenes, latents, depths = sets[large]
        rng, generator = random.Random(40_000_000 + step), torch.Generator().manual_seed(step)
        count = UNET_BATCH // 2 if large else UNET_BATCH
        chosen = torch.randint(len(scenes), (count,), generator=generator)
        texts = ["" if rng.random() < CAPTION_DROPOUT else caption(scenes[i], rng) for i in chosen.tolist()]
        noised = noise_at_random(schedule, latents[chosen], generator)
        return loss_beside(unet, noised, depths[chosen], base.context(texts))

    weights = train(plan, nn.ModuleDict({"unet": unet}), loss_at, folder)
    unet.load_state_dict(weights["unet"])
    return unet.eval()
