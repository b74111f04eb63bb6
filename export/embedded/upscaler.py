"""The x4 upscaler variant: a VAE with f = 4, and a UNet that sees the small picture beside the latent."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from torch.nn import functional

from export.embedded.autoencoder import PLAN as BASE_VAE_PLAN
from export.embedded.autoencoder import (
    corner_near,
    draw_all,
    encode,
    rescale,
    scenes,
    shallower_vae,
    to_network,
    train_vae,
)
from export.embedded.denoiser import CAPTION_DROPOUT, LARGE, WIDTH, new_schedule, noise_at_random
from export.embedded.finetuning import Base, loss_beside
from export.embedded.training import Plan, remembered, train
from export.embedded.world import CANVAS, Scene, caption

FACTOR = 4
LATENT_GAIN = 3.0  # brings the small picture to the spread that a VAE's latents have by themselves
PICTURES, LARGE_PICTURES = 3000, 500
# Of six batches four are of parts about objects, where the edges are, one of whole pictures and one of large ones, and
# all take about as long. Sides are of the small pictures.
PART, PARTS, WHOLE, LARGE_WHOLE = 16, 16, 4, 2
# The decoder learns from parts of so many latents that the UNet has made; a quarter of a batch are the encoder's.
MADE, DECODED, OWN, DECODED_PART = 2000, 16, 4, 12
BETAS = {"beta_start": 0.0001, "beta_end": 0.02}
MOST_NOISE_LEVEL = 350
# Of Stable Diffusion's own upscaler; diffusers' pipeline takes no other.
SCALING_FACTOR = 0.08333
# People make small pictures by averaging and bicubically.
REDUCTIONS = (Image.Resampling.BOX, Image.Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class Stage:
    """A VAE, and a UNet of its latents; each begins where the stage before ended.

    Attributes:
        likeness: how much it counts that three of the latent's channels are like the small picture.
        disturbance: of the VAE's latents; about as far as the UNet's are from them.
    """

    name: str
    vae: Plan
    unet: Plan
    likeness: float
    disturbance: float = 0.0


STAGES = (
    Stage(
        "coarse",
        replace(BASE_VAE_PLAN, name="vae4", steps=3800, save_every=100),
        Plan("upscaler", steps=5000, learning_rate=1.2e-3, save_every=100),
        likeness=0.1,
    ),
    Stage(
        "fine",
        Plan("vae4", steps=2500, learning_rate=1.5e-3, save_every=100),
        Plan("upscaler", steps=4000, learning_rate=8e-4, save_every=100),
        likeness=1.0,
        disturbance=0.17,
    ),
)
DECODER_PLAN = Plan("decoder4", steps=3000, learning_rate=1e-3, save_every=100)


def new_upscaler() -> UNet2DConditionModel:
    """Stable Diffusion's x4 UNet in small: it attends to itself at the lowest of its three levels only."""
    return UNet2DConditionModel(
        sample_size=CANVAS // FACTOR,
        in_channels=7,
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        only_cross_attention=(True, True, False),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        num_class_embeds=1000,
    )


def unlike_small_picture(weight: float, latents: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """How far three of the latent's channels are from the small picture, which the UNet then need only copy there."""
    small = functional.avg_pool2d(pixels, FACTOR)
    return weight * functional.mse_loss(latents[:, :3], LATENT_GAIN * small)


def new_low_res_schedule() -> DDPMScheduler:
    """How much noise a `noise_level` puts on the small picture."""
    return DDPMScheduler(**BETAS, beta_schedule="scaled_linear")


def reduced(picture: Image.Image, filter_: Image.Resampling) -> Image.Image:
    """The picture with sides a quarter as long."""
    return picture.resize((picture.width // FACTOR, picture.height // FACTOR), filter_)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures, large and small.

    Attributes:
        latents: (n, 4, h, w) of the large pictures, scaled.
        small: (2, n, 3, h, w) uint8, by each of `REDUCTIONS`.
    """

    scenes: list[Scene]
    latents: torch.Tensor
    small: torch.Tensor


def reduce_all(vae: AutoencoderKL, drawn: list[Scene], pixels: int) -> dict[str, torch.Tensor]:
    """The latents of `Pairs`, as fp16 and not yet scaled, and its small pictures."""
    latents, small = [], []
    for start in range(0, len(drawn), 100):
        pictures = draw_all(drawn[start : start + 100], pixels)
        latents.append(encode(vae, pictures, batch=10).half())
        images = [Image.fromarray(picture) for picture in pictures.permute(0, 2, 3, 1).numpy()]
        small.append(np.stack([[np.asarray(reduced(image, kind)) for image in images] for kind in REDUCTIONS]))
    joined = torch.from_numpy(np.concatenate(small, axis=1)).permute(0, 1, 4, 2, 3).contiguous()
    return {"latents": torch.cat(latents), "small": joined}


def pairs_of(vae: AutoencoderKL, count: int, pixels: int, seed: int, folder: Path) -> Pairs:
    """`count` drawn pictures and their reductions; kept in `folder`."""
    drawn = scenes(count, seed)
    saved = remembered(folder / f"pairs-{pixels}-{count}.pt", lambda: reduce_all(vae, drawn, pixels))
    return Pairs(drawn, saved["latents"].float() * vae.config.scaling_factor, saved["small"])


def parts_of(
    drawn: list[Scene], side: int, small: torch.Tensor, other: torch.Tensor, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same part of both about an object: (n, c, side, side) of `small`, and of `other` as many times as large."""
    factor = other.shape[-1] // small.shape[-1]
    cut: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
    for scene, one, two in zip(drawn, small, other, strict=True):
        x, y = (corner // FACTOR for corner in corner_near(scene, side * FACTOR, rng))
        cut[0].append(one[:, y : y + side, x : x + side])
        x, y, wide = x * factor, y * factor, side * factor
        cut[1].append(two[:, y : y + wide, x : x + wide])
    return torch.stack(cut[0]), torch.stack(cut[1])


def train_upscaler(
    base: Base,
    folder: Path,
    stages: tuple[Stage, ...] = STAGES,
    decoder_plan: Plan = DECODER_PLAN,
    made: int = MADE,
) -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """The stages, and then a decoder that has seen what the UNet makes of small pictures.

    Args:
        made: pictures whose latents the decoder learns from.
    """
    torch.manual_seed(7)
    vae, unet = shallower_vae(base.vae), new_upscaler()
    for stage in stages:
        kept = folder / stage.name
        kept.mkdir(parents=True, exist_ok=True)
        vae = train_vae(kept, stage.vae, vae, partial(unlike_small_picture, stage.likeness), stage.disturbance)
        sets = [pairs_of(vae, PICTURES, CANVAS, 8, kept), pairs_of(vae, LARGE_PICTURES, LARGE, 9, kept)]
        _train_unet(unet, base, sets, kept, stage.unet)
    latents = remembered(kept / f"made-{made}.pt", lambda: {"latents": make_latents(base, unet, sets[0], made)})
    train_decoder(vae, sets[0], latents["latents"].float(), kept, decoder_plan)
    rescale(vae, SCALING_FACTOR)
    return vae, unet


def shown_small(
    pairs: Pairs, chosen: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the UNet is shown: small pictures (n, 3, h, w), noise for them, and its levels, more often low than high."""
    kinds = torch.randint(len(pairs.small), (len(chosen),), generator=generator)
    small = to_network(pairs.small[kinds, chosen])
    levels = (torch.rand(len(chosen), generator=generator).square() * (MOST_NOISE_LEVEL + 1)).long()
    return small, torch.randn(small.shape, generator=generator), levels


def _train_unet(unet: UNet2DConditionModel, base: Base, sets: list[Pairs], folder: Path, plan: Plan) -> None:
    """v-prediction beside the small picture, which has noise on it."""
    schedule, low_res_schedule = new_schedule(**BETAS), new_low_res_schedule()

    def loss_at(step: int) -> torch.Tensor:
        turn = step % 6
        pairs, count = (sets[1], LARGE_WHOLE) if turn == 0 else (sets[0], WHOLE if turn == 3 else PARTS)
        rng, generator = random.Random(50_000_000 + step), torch.Generator().manual_seed(step)
        chosen = torch.randint(len(pairs.scenes), (count,), generator=generator)
        drawn = [pairs.scenes[i] for i in chosen.tolist()]
        texts = ["" if rng.random() < CAPTION_DROPOUT else caption(scene, rng) for scene in drawn]
        clean = pairs.latents[chosen]
        small, noise, levels = shown_small(pairs, chosen, generator)
        seen = low_res_schedule.add_noise(small, noise, levels)
        if count == PARTS:
            clean, seen = parts_of(drawn, PART, clean, seen, rng)
        noised = noise_at_random(schedule, clean, generator)
        return loss_beside(unet, noised, seen, base.context(texts), class_labels=levels)

    weights = train(plan, nn.ModuleDict({"unet": unet}), loss_at, folder)
    unet.load_state_dict(weights["unet"])
    unet.eval()


@torch.no_grad()
def make_latents(base: Base, unet: UNet2DConditionModel, pairs: Pairs, count: int, steps: int = 10) -> torch.Tensor:
    """What the UNet makes of the first `count` small pictures with DDIM: (count, 4, h, w) fp16, scaled."""
    schedule, low_res_schedule = new_schedule(**BETAS), new_low_res_schedule()
    schedule.set_timesteps(steps)
    rng, generator = random.Random(60_000_000), torch.Generator().manual_seed(10)
    made = []
    for chosen in torch.split(torch.arange(count), 10):
        small, noise, levels = shown_small(pairs, chosen, generator)
        seen = low_res_schedule.add_noise(small, noise, levels)
        context = base.context([caption(pairs.scenes[i], rng) for i in chosen.tolist()])
        latents = torch.randn((len(chosen), *pairs.latents.shape[1:]), generator=generator)
        for timestep in schedule.timesteps:
            sample = torch.cat([latents, seen], dim=1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                guess = unet(sample, timestep, context, class_labels=levels).sample
            latents = schedule.step(guess.float(), timestep, latents).prev_sample
        made.append(latents.half())
    return torch.cat(made)


def train_decoder(vae: AutoencoderKL, pairs: Pairs, made: torch.Tensor, folder: Path, plan: Plan) -> None:
    """The VAE's decoder learns what the UNet's latents stand for; some are the encoder's own, and stay its business."""
    count, decoders = len(made), nn.ModuleDict({"decoder": vae.decoder, "post": vae.post_quant_conv})
    large = draw_all(pairs.scenes[:count], CANVAS)

    def loss_at(step: int) -> torch.Tensor:
        rng, generator = random.Random(70_000_000 + step), torch.Generator().manual_seed(step)
        chosen = torch.randint(count, (DECODED,), generator=generator)
        drawn = [pairs.scenes[i] for i in chosen.tolist()]
        latents = torch.cat([pairs.latents[chosen[:OWN]], made[chosen[OWN:]]])
        latents, target = parts_of(drawn, DECODED_PART, latents, to_network(large[chosen]), rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded = vae.decode(latents / vae.config.scaling_factor).sample.float()
        loss: torch.Tensor = functional.l1_loss(decoded, target) + 4 * functional.mse_loss(decoded, target)
        return loss

    weights = train(plan, decoders, loss_at, folder)
    for name, network in decoders.items():
        network.load_state_dict(weights[name])
