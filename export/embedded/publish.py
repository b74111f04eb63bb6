"""Write the trained networks as an ordinary diffusers Stable Diffusion checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from export.embedded.denoiser import new_schedule


def publish(
    folder: Path,
    tokenizer_folder: Path,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
) -> None:
    """`folder` becomes a checkpoint with fp16 safetensors; its tokenizer files are copied as they were learned."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer_folder, folder / "tokenizer")
