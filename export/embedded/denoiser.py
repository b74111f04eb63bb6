"""The embedded checkpoint's text encoder and UNet.

The text encoder first learns to say what a caption means, then both learn to denoise.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from export.embedded.autoencoder import draw_all, encode, shares
from export.embedded.training import Plan, train
from export.embedded.vocabulary import CONTEXT
from export.embedded.world import CANVAS, COLOURS, POSITIONS, RELATIONS, SHAPES, Scene, caption, training_scene

TEXT_PLAN = Plan("text", steps=600, learning_rate=1e-3)
UNET_PLAN = Plan("unet", steps=11500, learning_rate=8e-4)
TEXT_BATCH, UNET_BATCH = 128, 32
SCENES, LARGE_SCENES, LARGE = 32000, 6000, 192
CAPTION_DROPOUT = 0.1
SNR_CAP = 5.0
WIDTH = 128

ATTRIBUTES: dict[str, list[str | None]] = {
    "background": [*COLOURS],
    "shape": [*SHAPES],
    "colour": [*COLOURS],
    "size": ["large", "small", None],
    "position": [*POSITIONS, None],
    "relation": [*RELATIONS, None],
    "second shape": [*SHAPES, None],
    "second colour": [*COLOURS, None],
}


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model, 128 wide and three layers deep."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Three levels, cross-attention on the lower two, about five million parameters."""
    return UNet2DConditionModel(
        sample_size=CANVAS // 8,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_schedule(beta_start: float = 0.00085, beta_end: float = 0.012) -> DDIMScheduler:
    """Stable Diffusion 2's schedule with v-prediction, which learns colours of large areas far sooner than epsilon."""
    return DDIMScheduler(
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="leading",
    )


@dataclass(frozen=True, slots=True)
class Noised:
    """Latents at random timesteps, the velocity to be learned there, and how much each error counts."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    velocity: torch.Tensor
    weight: torch.Tensor


def noise_at_random(schedule: DDIMScheduler, clean: torch.Tensor, generator: torch.Generator) -> Noised:
    """Noise each of `clean`, (n, channels, h, w), to a timestep of its own; SNR weights capped as in min-SNR."""
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.randint(1000, (len(clean),), generator=generator)
    signal = schedule.alphas_cumprod[timesteps]
    importance = 1 / (1 - signal)  # SNR + 1: what the velocity loss gives an error of the clean latent
    weight = importance.clamp(max=SNR_CAP + 1) / importance
    velocity = schedule.get_velocity(clean, noise, timesteps)
    return Noised(schedule.add_noise(clean, noise, timesteps), timesteps, velocity, weight)


def velocity_loss(guess: torch.Tensor, noised: Noised) -> torch.Tensor:
    """The weighted squared error of a guessed velocity, (n, channels, h, w)."""
    loss: torch.Tensor = ((guess - noised.velocity).square().mean(dim=(1, 2, 3)) * noised.weight).mean()
    return loss


def token_ids(tokenizer: CLIPTokenizer, texts: list[str], length: int = CONTEXT) -> torch.Tensor:
    """(n, length) int64, padded with the end-of-text token."""
    batch = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: torch.Tensor = batch["input_ids"]
    return ids


def meaning(scene: Scene) -> list[int]:
    """The scene as one class index per attribute."""
    second = scene.things[1] if scene.relation else None
    values = {
        "background": scene.background,
        "shape": scene.things[0].shape,
        "colour": scene.things[0].colour,
        "size": scene.size,
        "position": scene.position,
        "relation": scene.relation,
        "second shape": second.shape if second else None,
        "second colour": second.colour if second else None,
    }
    return [classes.index(values[name]) for name, classes in ATTRIBUTES.items()]


def train_text_encoder(tokenizer: CLIPTokenizer, folder: Path, plan: Plan = TEXT_PLAN) -> CLIPTextModel:
    """Teach the end-of-text state to hold every attribute of the scene, so that the UNet finds them there."""
    torch.manual_seed(1)
    encoder = new_text_encoder(tokenizer)
    heads = nn.Linear(WIDTH, sum(map(len, ATTRIBUTES.values())))
    widths = [len(classes) for classes in ATTRIBUTES.values()]

    def loss_at(step: int) -> torch.Tensor:
        rng = random.Random(10_000_000 + step)
        scenes = [training_scene(rng) for _ in range(TEXT_BATCH)]
        ids = token_ids(tokenizer, [caption(s, rng) for s in scenes], length=28)
        logits = heads(encoder(ids).pooler_output)
        target = torch.tensor([meaning(s) for s in scenes])
        parts = zip(logits.split(widths, dim=1), target.T, strict=True)
        return torch.stack([functional.cross_entropy(guess, truth) for guess, truth in parts]).mean()

    weights = train(plan, nn.ModuleDict({"text_encoder": encoder, "heads": heads}), loss_at, folder)
    encoder.load_state_dict(weights["text_encoder"])
    return encoder


def latent_set(
    vae: AutoencoderKL, count: int, pixels: int, seed: int, folder: Path
) -> tuple[list[Scene], torch.Tensor, torch.Tensor]:
    """Scenes, their scaled latents (count, 4, pixels / 8, pixels / 8) kept in `folder`, how often each is shown."""
    rng = random.Random(seed)
    scenes = [training_scene(rng) for _ in range(count)]
    kept = folder / f"latents-{pixels}-{count}-{seed}.pt"
    if not kept.exists():
        parts = [encode(vae, draw_all(scenes[i : i + 512], pixels)) for i in range(0, count, 512)]
        torch.save(torch.cat(parts).half(), kept)
    return scenes, torch.load(kept, weights_only=True).float() * vae.config.scaling_factor, shares(scenes)


def train_unet(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, vae: AutoencoderKL, folder: Path, plan: Plan = UNET_PLAN
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """v-prediction, its SNR weight capped as in min-SNR (Hang et al. 2023), with caption dropout.

    In the second half every sixth step is at 192 pixels.
    """
    torch.manual_seed(2)
    unet = new_unet()
    schedule = new_schedule()
    sets = [latent_set(vae, SCENES, CANVAS, 3, folder), latent_set(vae, LARGE_SCENES, LARGE, 4, folder)]

    def loss_at(step: int) -> torch.Tensor:
        large = step > plan.steps // 2 and step % 6 == 0
        scenes, latents, weights = sets[large]
        rng, generator = random.Random(20_000_000 + step), torch.Generator().manual_seed(step)
        count = UNET_BATCH // 2 if large else UNET_BATCH
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
        texts = ["" if rng.random() < CAPTION_DROPOUT else caption(scenes[i], rng) for i in chosen.tolist()]
        clean = latents[chosen]
        noised = noise_at_random(schedule, clean, generator)
        context = encoder(token_ids(tokenizer, texts)).last_hidden_state
        return velocity_loss(unet(noised.latents, noised.timesteps, context).sample, noised)

    networks = nn.ModuleDict({"text_encoder": encoder, "unet": unet})
    weights = train(plan, networks, loss_at, folder, slow=("text_encoder",))
    encoder.load_state_dict(weights["text_encoder"])
    unet.load_state_dict(weights["unet"])
    return encoder.eval(), unet.eval()
