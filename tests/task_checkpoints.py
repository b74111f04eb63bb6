"""Checkpoints of the specialised UNets, random and so small that they run at once: inpainting, depth, upscaling."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from export.checkpoint import Checkpoint
from export.export import Options, export_checkpoint

WIDTH = 32
# Of the square pictures that the tiny depth estimator takes.
DEPTH_SIDE = 64
# (height, width) in pixels of what is drawn; an upscaler takes a quarter.
SIZES = {
    "inpainting": [(64, 64), (128, 128), (64, 128)],
    "depth": [(64, 64), (128, 128), (64, 128)],
    "upscaling": [(128, 128), (256, 256), (128, 256)],
}
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def export_task(task: str, root: Path) -> tuple[Path, Path]:
    """The checkpoint of this task and its export, as folders in `root`; made there once for each text of this file."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = root / f"{task}-{version}"
    if not folder.exists():
        unfinished = root / f".{folder.name}.{os.getpid()}"
        write_task_checkpoint(task, unfinished / "checkpoint")
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    checkpoint = folder / "checkpoint"
    others = tuple(root / f"{other}-{version}" / "export" for other in SIZES if other != task)
    export_checkpoint(Checkpoint.open(str(checkpoint)), folder / "export", Options(SIZES[task], reuse=others))
    return checkpoint, folder / "export"


def write_task_checkpoint(task: str, folder: Path) -> None:
    """A diffusers folder as `StableDiffusionInpaintPipeline` and its like save it."""
    import diffusers
    import torch

    from export.embedded.vocabulary import load_tokenizer, write_tokenizer

    write_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    shared: dict[str, Any] = {"tokenizer": tokenizer, "safety_checker": None, "feature_extractor": None}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        shared |= {
            "text_encoder": _text_encoder(tokenizer, "quick_gelu" if task == "inpainting" else "gelu"),
            "vae": _vae(3 if task == "upscaling" else 4),
            "unet": _unet(task),
        }
        if task == "inpainting":
            pipeline = diffusers.StableDiffusionInpaintPipeline(
                **shared, scheduler=diffusers.DDIMScheduler(**SCHEDULE), requires_safety_checker=False
            )
        elif task == "depth":
            pipeline = diffusers.StableDiffusionDepth2ImgPipeline(
                **_without_safety(shared),
                depth_estimator=_depth_estimator(),
                scheduler=diffusers.DDIMScheduler(**SCHEDULE),
            )
        else:
            levels = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
            pipeline = diffusers.StableDiffusionUpscalePipeline(
                **shared,
                scheduler=diffusers.DDIMScheduler(
                    **SCHEDULE | levels | {"prediction_type": "v_prediction", "steps_offset": 0}
                ),
                low_res_scheduler=diffusers.DDPMScheduler(**levels),
            )
    shutil.move(folder / "tokenizer", folder.with_name("words"))
    pipeline.save_pretrained(folder)
    # As diffusers saves it, the tokenizer is slow to load.
    shutil.rmtree(folder / "tokenizer")
    shutil.move(folder.with_name("words"), folder / "tokenizer")


def _without_safety(parts: dict[str, Any]) -> dict[str, Any]:
    """A depth pipeline has no checker, and a feature extractor of its own, which the tests give it."""
    return {name: part for name, part in parts.items() if name != "safety_checker"}


def _text_encoder(tokenizer: Any, activation: str) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _vae(stages: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=(8, 8, 16, 16)[-stages:],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.08333 if stages == 3 else 0.18215,
    )


def _unet(task: str) -> Any:
    """The upscaler's finest stage has no attention, as the published one."""
    from diffusers import UNet2DConditionModel

    coarse_only = task == "upscaling"
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    return UNet2DConditionModel(
        in_channels={"inpainting": 9, "depth": 5, "upscaling": 7}[task],
        out_channels=4,
        sample_size=8,
        block_out_channels=(WIDTH, WIDTH),
        layers_per_block=1,
        down_block_types=tuple(down[::-1] if coarse_only else down),
        up_block_types=tuple(up[::-1] if coarse_only else up),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
        num_class_embeds=1000 if coarse_only else None,
    )


def _depth_estimator() -> Any:
    from transformers import DPTConfig, DPTForDepthEstimation

    return DPTForDepthEstimation(
        DPTConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=DEPTH_SIDE,
            patch_size=16,
            is_hybrid=False,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[16, 16, 16, 16],
            fusion_hidden_size=16,
        )
    )
