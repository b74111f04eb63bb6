"""The embedded checkpoint's VAE: a small `AutoencoderKL` trained on crops of drawn pictures."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional

from export.embedded.training import Plan, train
from export.embedded.world import CANVAS, Scene, draw, training_scene

PLAN = Plan("vae", steps=9600, learning_rate=2.5e-3)
# Every width but the first halves the sides.
WIDTHS = (16, 32, 64, 64)
BATCH, CROP, PICTURES = 16, 48, 6000
# Corners of small objects are the hardest to keep at f = 8: they are looked at more often than they are drawn.
SMALL_FACTOR = 3.0


def new_vae(widths: tuple[int, ...] = WIDTHS) -> AutoencoderKL:
    """Four latent channels; with the widths of the embedded checkpoint f = 8, and about a million parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=CANVAS,
    )


def scenes(count: int, seed: int) -> list[Scene]:
    """Training scenes."""
    rng = random.Random(seed)
    return [training_scene(rng) for _ in range(count)]


def pictures(count: int, seed: int, pixels: int = CANVAS) -> torch.Tensor:
    """(count, 3, pixels, pixels) uint8 drawings of training scenes."""
    return draw_all(scenes(count, seed), pixels)


def shares(drawn: list[Scene]) -> torch.Tensor:
    """How often each scene is looked at, (n,), relative to the others."""
    return torch.tensor([SMALL_FACTOR if scene.size == "small" else 1.0 for scene in drawn])


def crop_near(scene: Scene, picture: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """(3, CROP, CROP) of the picture, its centre somewhere in or about one of the scene's objects."""
    x, y = corner_near(scene, CROP, rng)
    return picture[:, y : y + CROP, x : x + CROP]


def corner_near(scene: Scene, side: int, rng: random.Random) -> tuple[int, int]:
    """Left and top of a square part of the canvas whose centre is somewhere in or about one of the objects."""
    thing = rng.choice(scene.things)
    centre = (c + rng.uniform(-thing.radius, thing.radius) for c in (thing.x, thing.y))
    x, y = (round(min(max(c - side / 2, 0), CANVAS - side)) for c in centre)
    return x, y


def draw_all(scenes: list[Scene], pixels: int) -> torch.Tensor:
    """(n, 3, pixels, pixels) uint8."""
    drawn = np.stack([draw(scene, pixels) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def to_network(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def shallower_vae(source: AutoencoderKL) -> AutoencoderKL:
    """A VAE with half the `f` of `source` that begins with its weights, all but those of its lowest level."""
    vae = new_vae(tuple(source.config.block_out_channels)[:-1])
    weights = vae.state_dict()
    for name, value in source.state_dict().items():
        # The decoder counts its levels from the lowest.
        level = re.match(r"decoder\.up_blocks\.(\d+)\.", name)
        ours = f"decoder.up_blocks.{int(level[1]) - 1}.{name[level.end() :]}" if level else name
        if ours in weights and weights[ours].shape == value.shape:
            weights[ours] = value
    vae.load_state_dict(weights)
    return vae


def train_vae(
    folder: Path,
    plan: Plan = PLAN,
    vae: AutoencoderKL | None = None,
    wish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    disturbance: float = 0.0,
) -> AutoencoderKL:
    """L1 + MSE + a very small KL term on crops around objects; sets `scaling_factor` to 1/std of the latents.

    Args:
        vae: what to begin with; a new one unless given.
        wish: what else is to be small, of the means of the latents, (n, 4, h / f, w / f), and the pixels.
        disturbance: standard deviation of the noise that latents must bear beside their posterior's own.
    """
    torch.manual_seed(0)
    vae = vae or new_vae()
    drawn = scenes(PICTURES, seed=1)
    data, weights = draw_all(drawn, CANVAS), shares(drawn)

    def loss_at(step: int) -> torch.Tensor:
        rng, generator = random.Random(step), torch.Generator().manual_seed(step)
        chosen = torch.multinomial(weights, BATCH, replacement=True, generator=generator).tolist()
        crops = [crop_near(drawn[i], data[i], rng) for i in chosen]
        target = to_network(torch.stack(crops))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            decoded = vae.decode(disturbed(posterior, disturbance, generator)).sample.float()
        kl = posterior.kl().mean() / target[0].numel()
        loss: torch.Tensor = functional.l1_loss(decoded, target) + functional.mse_loss(decoded, target) + 1e-5 * kl
        return loss + wish(posterior.mean.float(), target) if wish else loss

    averages = train(plan, nn.ModuleDict({"vae": vae}), loss_at, folder)
    vae.load_state_dict(averages["vae"])
    vae.eval()
    scale = 1 / encode(vae, pictures(256, seed=2)).std().item()
    vae.register_to_config(scaling_factor=round(scale, 5))
    return vae


def disturbed(posterior: Any, disturbance: float, generator: torch.Generator) -> torch.Tensor:
    """A sample of a posterior and of noise with this standard deviation besides, (n, 4, h / f, w / f)."""
    noise = torch.randn(posterior.mean.shape, generator=generator)
    sample: torch.Tensor = posterior.mean + (posterior.var + disturbance**2).sqrt() * noise
    return sample


@torch.no_grad()
def rescale(vae: AutoencoderKL, scaling_factor: float) -> None:
    """Change what `vae` multiplies its latents by, and the latents inversely: scaled latents stay what they are."""
    factor = vae.config.scaling_factor / scaling_factor
    channels = vae.config.latent_channels
    moments = vae.quant_conv
    moments.weight[:channels] *= factor
    moments.bias[:channels] *= factor
    moments.bias[channels:] += 2 * math.log(factor)  # of log-variances
    vae.post_quant_conv.weight /= factor
    vae.register_to_config(scaling_factor=scaling_factor)


@torch.no_grad()
def encode(vae: AutoencoderKL, data: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Posterior means of uint8 pictures, (n, 4, h / f, w / f), not yet scaled."""
    return torch.cat([vae.encode(to_network(part)).latent_dist.mean for part in torch.split(data, batch)])


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, data: torch.Tensor) -> float:
    """Mean PSNR in dB over whole pictures, on uint8 pixels."""
    decoded = [vae.decode(encode(vae, part)).sample for part in torch.split(data, 32)]
    pixels = ((torch.cat(decoded) + 1) * 127.5).round().clamp(0, 255)
    errors = (pixels - data.float()).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(255.0**2 / errors)).mean())
