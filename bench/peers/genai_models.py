"""A diffusers checkpoint as the folder of OpenVINO models that OpenVINO GenAI opens; fp32, so that nothing is lost.

Names and inputs are those that its pipeline asks its models for (openvino.genai, src/cpp/src/image_generation).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from openvino_tokenizers import convert_tokenizer

# Written last: with it a folder is complete.
INDEX = "model_index.json"
# Side of the latents that the networks are traced with; what is saved takes any.
SIDE = 8


class TextEncoder(torch.nn.Module):
    """The states of the last layer and the pooled prompt, without names."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.network(input_ids, return_dict=True)
        return output.last_hidden_state, output.pooler_output


class Unet(torch.nn.Module):
    """The output alone."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(sample, timestep, states, return_dict=False)[0]
        return output


class Decoder(torch.nn.Module):
    """The decoder's half of an autoencoder."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network.decode(latent, return_dict=False)[0]
        return output


def convert(checkpoint: Path, folder: Path, spacing: str) -> None:
    """Write the models into `folder`.

    Args:
        spacing: of the timesteps, as diffusers calls it.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(
        checkpoint, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    unet, vae, text = pipeline.unet.eval(), pipeline.vae.eval(), pipeline.text_encoder.eval()
    channels, latents, width = unet.config.in_channels, vae.config.latent_channels, unet.config.cross_attention_dim
    tokens = text.config.max_position_embeddings
    _save(
        TextEncoder(text),
        {"input_ids": (torch.zeros(1, tokens, dtype=torch.int64), [-1, -1])},
        ("last_hidden_state", "pooler_output"),
        folder / "text_encoder",
    )
    _save(
        Unet(unet),
        {
            "sample": (torch.zeros(2, channels, SIDE, SIDE), [-1, channels, -1, -1]),
            "timestep": (torch.tensor([1]), [-1]),
            "encoder_hidden_states": (torch.zeros(2, tokens, width), [-1, -1, width]),
        },
        ("out_sample",),
        folder / "unet",
    )
    _save(
        Decoder(vae),
        {"latent_sample": (torch.zeros(1, latents, SIDE, SIDE), [-1, latents, -1, -1])},
        ("sample",),
        folder / "vae_decoder",
    )
    for source, target in (("text_encoder", "text_encoder"), ("unet", "unet"), ("vae", "vae_decoder")):
        shutil.copy(checkpoint / source / "config.json", folder / target / "config.json")
    levels = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing=spacing)
    levels.save_pretrained(folder / "scheduler")
    tokenizer = convert_tokenizer(pipeline.tokenizer, with_detokenizer=False)
    openvino.save_model(tokenizer, folder / "tokenizer" / "openvino_tokenizer.xml")
    shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    shutil.copy(checkpoint / INDEX, folder / INDEX)


def _save(
    network: torch.nn.Module,
    inputs: Mapping[str, tuple[torch.Tensor, list[int]]],
    outputs: Sequence[str],
    folder: Path,
) -> None:
    """Trace a network.

    Args:
        inputs: an example of each, and the shape that it may have (-1 for any size).
    """
    with torch.no_grad():
        model = openvino.convert_model(network, example_input=tuple(example for example, _ in inputs.values()))
    for port, name in zip(model.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    model.reshape({port: shape for port, (_, shape) in zip(model.inputs, inputs.values(), strict=True)})
    for port, name in zip(model.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
