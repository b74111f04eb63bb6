"""A x4 upscaler of random weights, so small that it runs at once; until the embedded one is trained."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.export import Options
from tests.exports import export_once

WIDTH = 32
LEVELS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear"}


def random_upscaler(root: Path, sizes: Sequence[tuple[int, int]]) -> tuple[Path, Path]:
    """The checkpoint and its export, as folders in `root`; made there once for each text of this file."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = root / f"upscaling-{version}"
    if not folder.exists():
        unfinished = root / f".{folder.name}.{os.getpid()}"
        _write(unfinished / "checkpoint")
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    checkpoint = folder / "checkpoint"
    return checkpoint, export_once(checkpoint, folder / "export", Options(list(sizes)))


def _write(folder: Path) -> None:
    """A diffusers folder as `StableDiffusionUpscalePipeline` saves it."""
    import diffusers
    import torch

    from export.embedded.vocabulary import load_tokenizer, write_tokenizer

    write_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        pipeline = diffusers.StableDiffusionUpscalePipeline(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(tokenizer),
            vae=_vae(),
            unet=_unet(),
            safety_checker=None,
            feature_extractor=None,
            scheduler=diffusers.DDIMScheduler(
                **LEVELS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
            ),
            low_res_scheduler=diffusers.DDPMScheduler(**LEVELS),
        )
    shutil.move(folder / "tokenizer", folder.with_name("words"))
    pipeline.save_pretrained(folder)
    # As diffusers saves it, the tokenizer is slow to load.
    shutil.rmtree(folder / "tokenizer")
    shutil.move(folder.with_name("words"), folder / "tokenizer")


def _text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.08333,
    )


def _unet() -> Any:
    """The finest stage has no attention, as the published one."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=7,
        out_channels=4,
        sample_size=8,
        block_out_channels=(WIDTH, WIDTH),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
        num_class_embeds=1000,
    )
