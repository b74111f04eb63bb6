"""Write the trained networks as ordinary diffusers Stable Diffusion checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from export.embedded.denoiser import new_schedule

INDEX, PROCESSOR = "model_index.json", "preprocessor_config.json"


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


def publish_variant(folder: Path, base: Path, pipeline: DiffusionPipeline, own: tuple[str, ...]) -> None:
    """`folder` becomes a checkpoint of the pipeline's class; parts that are not its `own` are copied from `base`.

    Its own networks are written as fp16 safetensors. What is there already but belongs to no part stays, such as a
    README.
    """
    parts: dict[str, Any] = {name: part for name, part in pipeline.components.items() if part is not None}
    for name, part in parts.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        if name in own:
            if isinstance(part, nn.Module):
                part.to(torch.float16)
            part.save_pretrained(folder / name)
        else:
            shutil.copytree(base / name, folder / name)
    pipeline.save_config(folder)
    for file in (folder / INDEX, folder / "feature_extractor" / PROCESSOR):
        if file.exists():
            # transformers without torchvision has a class of another name, which its older versions do not know.
            file.write_text(file.read_text().replace('ImageProcessorPil"', 'ImageProcessor"'))
