"""The embedded checkpoint's VAE: a small `AutoencoderKL` trained on crops of drawn pictures."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional

from export.embedded.training import Plan, train
from export.embedded.world import CANVAS, Scene, draw, training_scene

PLAN = Plan("vae", steps=3600, learning_rate=2.5e-3)
BATCH, CROP, PICTURES = 16, 64, 6000


def new_vae() -> AutoencoderKL:
    """f = 8, four latent channels, about a million parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=CANVAS,
    )


def pictures(count: int, seed: int, pixels: int = CANVAS) -> torch.Tensor:
    """(count, 3, pixels, pixels) uint8 drawings of training scenes."""
    rng = random.Random(seed)
    return draw_all([training_scene(rng) for _ in range(count)], pixels)


def draw_all(scenes: list[Scene], pixels: int) -> torch.Tensor:
    """(n, 3, pixels, pixels) uint8."""
    drawn = np.stack([draw(scene, pixels) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def to_network(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def train_vae(folder: Path, plan: Plan = PLAN) -> AutoencoderKL:
    """L1 + MSE + a very small KL term on random crops; sets `scaling_factor` to 1/std of the latents."""
    torch.manual_seed(0)
    vae = new_vae().to(memory_format=torch.channels_last)
    data = pictures(PICTURES, seed=1)

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(data), (BATCH,), generator=generator)
        corners = torch.randint(CANVAS - CROP + 1, (BATCH, 2), generator=generator)
        crops = [data[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(chosen, corners, strict=True)]
        target = to_network(torch.stack(crops)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        kl = posterior.kl().mean() / target[0].numel()
        loss: torch.Tensor = functional.l1_loss(decoded, target) + functional.mse_loss(decoded, target) + 1e-5 * kl
        return loss

    weights = train(plan, nn.ModuleDict({"vae": vae}), loss_at, folder)
    vae.load_state_dict(weights["vae"])
    vae.eval()
    scale = 1 / encode(vae, pictures(256, seed=2)).std().item()
    vae.register_to_config(scaling_factor=round(scale, 5))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, data: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Posterior means of uint8 pictures, (n, 4, h / 8, w / 8), not yet scaled."""
    return torch.cat([vae.encode(to_network(part)).latent_dist.mean for part in torch.split(data, batch)])


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, data: torch.Tensor) -> float:
    """Mean PSNR in dB over whole pictures, on uint8 pixels."""
    decoded = [vae.decode(encode(vae, part)).sample for part in torch.split(data, 32)]
    pixels = ((torch.cat(decoded) + 1) * 127.5).round().clamp(0, 255)
    errors = (pixels - data.float()).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(255.0**2 / errors)).mean())
