"""The published architectures with every part, so narrow that they are built and run in a moment."""

from __future__ import annotations

from typing import Any

from export.architectures import ARCHITECTURES, Architecture, Part

WIDTH = 32
TIME_WIDTH = 8


def small(name: str) -> Architecture:
    """The named architecture with its stages, tasks and inputs, but narrow."""
    published = ARCHITECTURES[name]
    parts = {folder: Part(part.library, part.kind, _narrow(part)) for folder, part in published.parts.items()}
    return Architecture(published.pipeline, parts, published.tokenizers)


def _narrow(part: Part) -> dict[str, Any]:
    config = dict(part.config)
    if part.kind.startswith("CLIP"):
        sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2}
        return config | sizes | {"num_hidden_layers": 3, "projection_dim": WIDTH}
    if part.kind == "AutoencoderKL":
        return config | {"block_out_channels": [WIDTH] * len(config["block_out_channels"]), "layers_per_block": 1}
    if part.kind == "DPTForDepthEstimation":
        backbone = {
            "embedding_size": WIDTH,
            "hidden_sizes": [WIDTH, WIDTH, 2 * WIDTH],
            "depths": [1, 1, 1],
            "num_groups": 8,
        }
        return config | {
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_attention_heads": 2,
            "neck_hidden_sizes": [WIDTH] * 4,
            "fusion_hidden_size": WIDTH,
            "backbone_featmap_shape": [1, 2 * WIDTH, 24, 24],
            "backbone_config": {
                **backbone,
                "model_type": "bit",
                "layer_type": "bottleneck",
                "global_padding": "same",
                "embedding_dynamic_padding": True,
                "out_features": ["stage1", "stage2", "stage3"],
            },
        }
    if part.kind in ("UNet2DConditionModel", "ControlNetModel"):
        return config | _narrow_denoiser(part.kind, config)
    return config


def _narrow_denoiser(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    stages = len(config["block_out_channels"])
    narrow: dict[str, Any] = {"block_out_channels": [WIDTH] * stages, "attention_head_dim": 2}
    narrow["cross_attention_dim"] = 2 * WIDTH if config["cross_attention_dim"] == 2048 else WIDTH
    if isinstance(config.get("transformer_layers_per_block"), list):
        narrow["transformer_layers_per_block"] = [1] * stages
    if "projection_class_embeddings_input_dim" in config and kind == "UNet2DConditionModel":
        numbers = (config["projection_class_embeddings_input_dim"] - 1280) // 256
        narrow["addition_time_embed_dim"] = TIME_WIDTH
        narrow["projection_class_embeddings_input_dim"] = WIDTH + numbers * TIME_WIDTH
    return narrow
