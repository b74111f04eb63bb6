"""The variants of the embedded checkpoint, each trained and published by one function."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import (
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionUpscalePipeline,
)

from export.embedded.autoencoder import pictures, reconstruction_psnr
from export.embedded.denoiser import new_schedule
from export.embedded.depth import new_processor, train_depth, train_estimator
from export.embedded.finetuning import Base
from export.embedded.inpainting import train_inpainting
from export.embedded.publish import publish_variant
from export.embedded.upscaler import BETAS, MOST_NOISE_LEVEL, new_low_res_schedule, train_upscaler


def _shared(base: Base) -> dict[str, Any]:
    return {"text_encoder": base.encoder, "tokenizer": base.tokenizer, "vae": base.vae, "scheduler": new_schedule()}


def make_inpainting(base: Base, work: Path, out: Path) -> None:
    """Train and publish the checkpoint that fills masks."""
    pipeline = StableDiffusionInpaintPipeline(
        **_shared(base),
        unet=train_inpainting(base, work),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    publish_variant(out, base.folder, pipeline, ("unet",))


def make_depth(base: Base, work: Path, out: Path) -> None:
    """Train and publish the checkpoint that keeps a picture's depth, with the estimator of it."""
    pipeline = StableDiffusionDepth2ImgPipeline(
        **_shared(base),
        depth_estimator=train_estimator(work),
        feature_extractor=new_processor(),
        unet=train_depth(base, work),
    )
    publish_variant(out, base.folder, pipeline, ("unet", "depth_estimator", "feature_extractor"))


def make_upscaler(base: Base, work: Path, out: Path) -> None:
    """Train and publish the checkpoint that makes pictures four times as large."""
    vae, unet = train_upscaler(base, work)
    logging.info("VAE reconstruction: %.2f dB", reconstruction_psnr(vae, pictures(200, seed=5)))
    pipeline = StableDiffusionUpscalePipeline(
        **_shared(base) | {"vae": vae, "scheduler": new_schedule(**BETAS)},
        low_res_scheduler=new_low_res_schedule(),
        unet=unet,
        max_noise_level=MOST_NOISE_LEVEL,
    )
    publish_variant(out, base.folder, pipeline, ("unet", "vae", "scheduler", "low_res_scheduler"))


VARIANTS: dict[str, Callable[[Base, Path, Path], None]] = {
    "inpainting": make_inpainting,
    "depth": make_depth,
    "upscaler": make_upscaler,
}
