"""The published configurations of Stable Diffusion checkpoints, as data.

Sources: the v1, v2, x4 and SDXL inference YAML files of CompVis and Stability AI, and the configurations of their
diffusers conversions. Only what differs from the defaults of diffusers' and transformers' classes is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Config: TypeAlias = dict[str, Any]

START, END = "<|startoftext|>", "<|endoftext|>"
# Stable Diffusion 2's and SDXL's second text encoder come from OpenCLIP, which fills prompts up with id 0.
OPENCLIP_PAD = "!"


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of a checkpoint: its class in a library (`diffusers` or `transformers`), and its configuration."""

    library: str
    kind: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A kind of checkpoint.

    Attributes:
        pipeline: diffusers' class; empty for a network that is a checkpoint of its own, whose only part is "".
        parts: networks and schedules, by folder.
        tokenizers: the word that fills a prompt up, by folder.
    """

    pipeline: str
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, str]


def _crossed(side: str, plan: str) -> list[str]:
    """Block types from a word such as `xxx-`: x has cross-attention."""
    return [f"CrossAttn{side}Block2D" if letter == "x" else f"{side}Block2D" for letter in plan]


def _blocks(plan: str) -> Config:
    return {"down_block_types": _crossed("Down", plan), "up_block_types": _crossed("Up", plan[::-1])}


SD1_UNET: Config = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    **_blocks("xxx-"),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD2_UNET = SD1_UNET | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
X4_UNET = SD2_UNET | {
    "sample_size": 128,
    "in_channels": 7,
    "block_out_channels": [256, 512, 512, 1024],
    **_blocks("-xxx"),
    "attention_head_dim": 8,
    "only_cross_attention": [True, True, True, False],
    "num_class_embeds": 1000,
}
XL_SIZES: Config = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    # The pooled prompt (1280) and six numbers about sizes and crops (256 each).
    "projection_class_embeddings_input_dim": 2816,
}
XL_UNET = XL_SIZES | {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    **_blocks("-xx"),
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
}
REFINER_UNET = XL_UNET | {
    "block_out_channels": [384, 768, 1536, 1536],
    **_blocks("-xx-"),
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "projection_class_embeddings_input_dim": 2560,
}


def _vae(channels: list[int], sample_size: int, scaling_factor: float) -> Part:
    config = {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
    }
    return Part("diffusers", "AutoencoderKL", config)


SD_VAE = _vae([128, 256, 512, 512], 512, 0.18215)
X4_VAE = _vae([128, 256, 512], 256, 0.08333)
XL_VAE = _vae([128, 256, 512, 512], 1024, 0.13025)


def _text(width: int, layers: int, activation: str, projection: int, kind: str = "CLIPTextModel") -> Part:
    config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": activation,
        "projection_dim": projection,
        "vocab_size": 49408,
        # As published: with the id 2 transformers pools at the largest id, which is the first end of text.
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    return Part("transformers", kind, config)


CLIP_L = _text(768, 12, "quick_gelu", 768)
# OpenCLIP's ViT-H without its last layer, which Stable Diffusion 2 does not use.
OPENCLIP_H = _text(1024, 23, "gelu", 512)
OPENCLIP_BIG_G = _text(1280, 32, "gelu", 1280, "CLIPTextModelWithProjection")

DEPTH_ESTIMATOR = Part(
    "transformers",
    "DPTForDepthEstimation",
    {"is_hybrid": True, "neck_hidden_sizes": [256, 512, 768, 768], "reassemble_factors": [1, 1, 1, 0.5]},
)

TRAINED: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
UNCLIPPED = TRAINED | {"clip_sample": False, "set_alpha_to_one": False}
PNDM = Part("diffusers", "PNDMScheduler", TRAINED | {"set_alpha_to_one": False, "skip_prk_steps": True})
DDIM_V = Part("diffusers", "DDIMScheduler", UNCLIPPED | {"prediction_type": "v_prediction"})
EULER = Part("diffusers", "EulerDiscreteScheduler", TRAINED | {"timestep_spacing": "leading"})
X4_BETAS: Config = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
X4_DDIM = Part("diffusers", "DDIMScheduler", {**DDIM_V.config, **X4_BETAS})
X4_LOW_RES = Part("diffusers", "DDPMScheduler", X4_BETAS)


def _unet(config: Config, **changes: Any) -> Part:
    return Part("diffusers", "UNet2DConditionModel", config | changes)


def _sd1(**unet: Any) -> Architecture:
    task = "Inpaint" if unet.get("in_channels") == 9 else ""
    parts = {"text_encoder": CLIP_L, "unet": _unet(SD1_UNET, **unet), "vae": SD_VAE, "scheduler": PNDM}
    return Architecture(f"StableDiffusion{task}Pipeline", parts, {"tokenizer": END})


def _sd2(pipeline: str = "StableDiffusionPipeline", scheduler: Part = PNDM, **unet: Any) -> Architecture:
    parts = {"text_encoder": OPENCLIP_H, "unet": _unet(SD2_UNET, **unet), "vae": SD_VAE, "scheduler": scheduler}
    return Architecture(pipeline, parts, {"tokenizer": OPENCLIP_PAD})


def _with(architecture: Architecture, **parts: Part) -> Architecture:
    return Architecture(architecture.pipeline, {**architecture.parts, **parts}, architecture.tokenizers)


def _control(unet: Config) -> Architecture:
    config = {k: v for k, v in unet.items() if k not in ("sample_size", "up_block_types")}
    return Architecture("", {"": Part("diffusers", "ControlNetModel", config)}, {})


ARCHITECTURES: dict[str, Architecture] = {
    "sd14": _sd1(),
    "sd15": _sd1(),
    "sd15-inpainting": _sd1(in_channels=9),
    "sd20-base": _sd2(),
    "sd20": _sd2(scheduler=DDIM_V, sample_size=96),
    "sd21-base": _sd2(),
    "sd21": _sd2(scheduler=DDIM_V, sample_size=96, upcast_attention=True),
    "sd2-inpainting": _sd2("StableDiffusionInpaintPipeline", in_channels=9),
    "sd2-depth": _with(_sd2("StableDiffusionDepth2ImgPipeline", in_channels=5), depth_estimator=DEPTH_ESTIMATOR),
    "x4-upscaler": Architecture(
        "StableDiffusionUpscalePipeline",
        {
            "text_encoder": OPENCLIP_H,
            "unet": _unet(X4_UNET),
            "vae": X4_VAE,
            "scheduler": X4_DDIM,
            "low_res_scheduler": X4_LOW_RES,
        },
        {"tokenizer": OPENCLIP_PAD},
    ),
    "sdxl": Architecture(
        "StableDiffusionXLPipeline",
        {
            "text_encoder": CLIP_L,
            "text_encoder_2": OPENCLIP_BIG_G,
            "unet": _unet(XL_UNET),
            "vae": XL_VAE,
            "scheduler": EULER,
        },
        {"tokenizer": END, "tokenizer_2": OPENCLIP_PAD},
    ),
    "sdxl-refiner": Architecture(
        "StableDiffusionXLImg2ImgPipeline",
        {"text_encoder_2": OPENCLIP_BIG_G, "unet": _unet(REFINER_UNET), "vae": XL_VAE, "scheduler": EULER},
        {"tokenizer_2": OPENCLIP_PAD},
    ),
    "controlnet-sd15": _control(SD1_UNET),
    "controlnet-sdxl": _control(XL_UNET),
}
