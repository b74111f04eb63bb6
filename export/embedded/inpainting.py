"""The inpainting variant: the embedded UNet with nine channels, taught to fill masks of drawn pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageDraw
from torch import nn

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
from export.embedded.training import Plan, remembered, train
from export.embedded.world import CANVAS, Scene, Thing, caption, silhouette

PLAN = Plan("inpainting", steps=2500, learning_rate=4e-4, warmup=100, save_every=100)
CHANNELS = 9
MASKED, LARGE_MASKED = 10000, 1500
# Everything is masked as often as Stable Diffusion's own inpainting checkpoints were trained with.
WHOLE_SHARE = 0.25
EVERY_LARGE = 6


def box_about(thing: Thing, rng: random.Random, pen: ImageDraw.ImageDraw) -> None:
    """A rectangle with the object in it."""
    pen.rectangle(_bounds(thing, rng, 1.05, 1.7), fill=1)


def blob_about(thing: Thing, rng: random.Random, pen: ImageDraw.ImageDraw) -> None:
    """An ellipse with all or nearly all of the object in it."""
    pen.ellipse(_bounds(thing, rng, 1.1, 1.8), fill=1)


def _bounds(thing: Thing, rng: random.Random, least: float, most: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (thing.radius * rng.uniform(least, most) for _ in range(4))
    return thing.x - left, thing.y - top, thing.x + right, thing.y + bottom


def strip(_: Thing, rng: random.Random, pen: ImageDraw.ImageDraw) -> None:
    """All beyond a line: what outpainting asks for."""
    near = rng.uniform(0.2, 0.75) * CANVAS
    far = CANVAS - near
    whole = (0.0, 0.0, CANVAS, CANVAS)
    side = rng.randrange(4)
    pen.rectangle([*whole[:side], near if side > 1 else far, *whole[side + 1 :]], fill=1)


def scatter(_: Thing, rng: random.Random, pen: ImageDraw.ImageDraw) -> None:
    """One to three rectangles and ellipses anywhere."""
    for _part in range(rng.randint(1, 3)):
        x, y = rng.uniform(0, CANVAS), rng.uniform(0, CANVAS)
        across, down = rng.uniform(8, 40), rng.uniform(8, 40)
        rng.choice([pen.rectangle, pen.ellipse])((x - across, y - down, x + across, y + down), fill=1)


DrawnMask = Callable[[Thing, random.Random, ImageDraw.ImageDraw], None]
KINDS: dict[DrawnMask, float] = {box_about: 0.45, blob_about: 0.2, strip: 0.1, scatter: 0.15}
OUTLINE_SHARE = 1 - sum(KINDS.values())


def draw_mask(scene: Scene, rng: random.Random, pixels: int = CANVAS) -> npt.NDArray[np.bool_]:
    """(pixels, pixels), true where the picture is to be painted anew: about an object, along a side, or anywhere."""
    thing = rng.choice(scene.things)
    if rng.random() < OUTLINE_SHARE:
        wider = replace(thing, radius=thing.radius * rng.uniform(1, 1.25))
        return np.asarray(silhouette(wider, pixels))
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    image = Image.new("1", (CANVAS, CANVAS))
    kind(thing, rng, ImageDraw.Draw(image))
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.NEAREST))


@dataclass(frozen=True, slots=True)
class MaskedSet:
    """Scenes with what an inpainting UNet takes of them.

    Attributes:
        latents: (n, 4, h, w) of the whole pictures, scaled.
        masks: (n, 1, h, w), 1 where the picture is to be painted anew.
        kept: (n, 4, h, w) latents of the pictures with grey in place of what is masked, scaled.
    """

    scenes: list[Scene]
    latents: torch.Tensor
    masks: torch.Tensor
    kept: torch.Tensor


def grey_out(vae: AutoencoderKL, pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Scaled latents of (n, 3, height, width) uint8 pictures that are mid-grey where (n, height, width) is true."""
    with torch.no_grad():
        seen = to_network(pictures) * ~masks[:, None]
        latents: torch.Tensor = vae.encode(seen).latent_dist.mean * vae.config.scaling_factor
    return latents


def mask_all(vae: AutoencoderKL, scenes: list[Scene], pixels: int) -> dict[str, torch.Tensor]:
    """The masks of a `MaskedSet`, as bool, and what they leave, as fp16."""
    rng = random.Random(pixels)
    masks, kept = [], []
    for start in range(0, len(scenes), 100):
        few = scenes[start : start + 100]
        large = torch.from_numpy(np.stack([draw_mask(scene, rng, pixels) for scene in few]))
        # A mask becomes as small as the latents by taking the nearest pixel, as pipelines do.
        masks.append(large[:, None, ::8, ::8])
        kept.append(grey_out(vae, draw_all(few, pixels), large).half())
    return {"masks": torch.cat(masks), "kept": torch.cat(kept)}


def masked_set(base: Base, total: int, count: int, pixels: int, seed: int, folder: Path) -> MaskedSet:
    """The first `count` of the base's own training scenes with a mask each; kept in `folder`."""
    scenes, latents, _ = latent_set(base.vae, total, pixels, seed, folder)
    scenes, latents = scenes[:count], latents[:count]
    saved = remembered(folder / f"masked-{pixels}-{count}.pt", lambda: mask_all(base.vae, scenes, pixels))
    return MaskedSet(scenes, latents, saved["masks"].float(), saved["kept"].float())


def train_inpainting(base: Base, folder: Path, plan: Plan = PLAN) -> UNet2DConditionModel:
    """v-prediction beside the mask and the masked picture; a quarter of the pictures are masked all over."""
    torch.manual_seed(4)
    unet = adapted_unet(base.unet, CHANNELS)
    schedule = new_schedule()
    sets = [
        masked_set(base, SCENES, MASKED, CANVAS, 3, folder),
        masked_set(base, LARGE_SCENES, LARGE_MASKED, LARGE, 4, folder),
    ]
    greys = [
        grey_out(base.vae, torch.zeros(1, 3, n, n, dtype=torch.uint8), torch.ones(1, n, n, dtype=torch.bool))
        for n in (CANVAS, LARGE)
    ]

    def loss_at(step: int) -> torch.Tensor:
        large = step % EVERY_LARGE == 0
        data, grey = sets[large], greys[large]
        rng, generator = random.Random(30_000_000 + step), torch.Generator().manual_seed(step)
        count = UNET_BATCH // 2 if large else UNET_BATCH
        chosen = torch.randint(len(data.scenes), (count,), generator=generator)
        texts = ["" if rng.random() < CAPTION_DROPOUT else caption(data.scenes[i], rng) for i in chosen.tolist()]
        whole = (torch.rand(count, generator=generator) < WHOLE_SHARE)[:, None, None, None]
        noised = noise_at_random(schedule, data.latents[chosen], generator)
        masks = torch.where(whole, 1.0, data.masks[chosen])
        beside = torch.cat([masks, torch.where(whole, grey, data.kept[chosen])], dim=1)
        return loss_beside(unet, noised, beside, base.context(texts))

    # Weights that begin at zero are far from where they must be, all others near.
    weights = train(plan, nn.ModuleDict({"unet": unet}), loss_at, folder, quick="unet.conv_in.weight")
    unet.load_state_dict(weights["unet"])
    return unet.eval()
