"""What the variants of the embedded checkpoint share: the networks they begin with, and how a UNet is adapted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from export.embedded.denoiser import Noised, token_ids, velocity_loss
from export.embedded.vocabulary import load_tokenizer

BASE_FOLDER = Path(__file__).with_name("checkpoint")
# A variant has a UNet of its own, which is to stay below 8 MB in fp16: it does without the base's middle and the
# attention on the way down at the lowest level. What is left keeps its weights.
LEANER = {"mid_block_type": None, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")}


@dataclass(frozen=True, slots=True)
class Base:
    """The networks of the embedded checkpoint, in fp32. Variants share all but the UNet, and learn none of them."""

    folder: Path
    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL

    @classmethod
    def load(cls, folder: Path = BASE_FOLDER) -> Base:
        """Read a checkpoint that `export.embedded.publish` wrote."""
        kinds = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
        networks = [kind.from_pretrained(folder / part).float().eval() for part, kind in kinds.items()]
        for network in networks:
            network.requires_grad_(False)
        return cls(folder, load_tokenizer(folder / "tokenizer"), *networks)

    @torch.no_grad()
    def context(self, texts: list[str]) -> torch.Tensor:
        """(n, 77, 128): what cross-attention sees of the captions."""
        states: torch.Tensor = self.encoder(token_ids(self.tokenizer, texts)).last_hidden_state
        return states


def loss_beside(
    unet: UNet2DConditionModel, noised: Noised, beside: torch.Tensor, context: torch.Tensor, **labels: torch.Tensor
) -> torch.Tensor:
    """The loss of a UNet that takes (n, channels, h, w) `beside` the noised latents; bf16 takes two thirds of the time.

    Args:
        labels: what else the UNet takes, by name.
    """
    sample = torch.cat([noised.latents, beside], dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guess = unet(sample, noised.timesteps, context, **labels).sample
    return velocity_loss(guess.float(), noised)


def adapted_unet(source: UNet2DConditionModel, in_channels: int, **changes: Any) -> UNet2DConditionModel:
    """A leaner copy of `source` that takes `in_channels`; the added ones count for nothing until it has learned.

    Args:
        changes: what else its configuration has different.
    """
    config = {key: value for key, value in source.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**config | LEANER | changes | {"in_channels": in_channels})
    kept = {name: value for name, value in source.state_dict().items() if name in unet.state_dict()}
    first = torch.zeros_like(unet.conv_in.weight)
    first[:, : source.conv_in.in_channels] = source.conv_in.weight
    unet.load_state_dict(kept | {"conv_in.weight": first})
    return unet
