"""Networks with flat tensor inputs and one tensor output, in the types that `engines.catalog` states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from export.checkpoint import Checkpoint


class TextEncoder(nn.Module):
    """(rows, length) int32 ids and (rows,) int32 layers to leave out, to a hidden state after the final norm, fp32."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, clip_skip: torch.Tensor) -> torch.Tensor:
        states = self.network(input_ids.long(), output_hidden_states=True).hidden_states
        stacked = torch.stack(states, dim=1)
        layer = (len(states) - 1 - clip_skip.long()).reshape(-1, 1, 1, 1).expand(-1, -1, *stacked.shape[2:])
        hidden: torch.Tensor = self.network.final_layer_norm(stacked.gather(1, layer).squeeze(1))
        return hidden.float()


class Unet(nn.Module):
    """(rows, c, h, w), (rows,) fp32 timesteps, (rows, tokens, width) to (rows, 4, h, w), fp32 outside."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        dtype = self.network.dtype
        output: torch.Tensor = self.network(
            sample.to(dtype), timestep, encoder_hidden_states.to(dtype), return_dict=False
        )[0]
        return output.float()


class VaeEncoder(nn.Module):
    """(rows, 3, 8h, 8w) in [-1, 1] to the posterior's moments (rows, 8, h, w): mean, then log-variance."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        posterior = self.network.encode(image.to(self.network.dtype), return_dict=False)[0]
        moments: torch.Tensor = posterior.parameters
        return moments.float()


class VaeDecoder(nn.Module):
    """(rows, 4, h, w) latents, already divided by the scaling factor, to pixels around [-1, 1]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.network.decode(latent.to(self.network.dtype), return_dict=False)[0]
        return image.float()


def _parts(checkpoint: Checkpoint) -> dict[str, Callable[[], nn.Module]]:
    return {
        "text_encoder": lambda: TextEncoder(checkpoint.text_encoder()),
        "unet": lambda: Unet(checkpoint.unet()),
        "vae_encoder": lambda: VaeEncoder(checkpoint.vae()),
        "vae_decoder": lambda: VaeDecoder(checkpoint.vae()),
    }


def load_component(checkpoint: Checkpoint, name: str) -> nn.Module:
    """The wrapped network of one component, in fp32."""
    return _parts(checkpoint)[name]().eval()
