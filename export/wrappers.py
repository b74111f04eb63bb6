"""Networks with flat tensor inputs and tensor outputs, in the types that `engines.catalog` states."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engines.component import Family, Precision
from export.checkpoint import PART_OF, Checkpoint

Tensors = tuple[torch.Tensor, ...]


class Wrapped(nn.Module):
    """A network of diffusers or transformers, fp32 outside whatever its own type."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network


class TextEncoder(Wrapped):
    """(rows, length) int32 ids and (rows,) int32 layers to leave out, to a hidden state after the final norm, fp32."""

    def forward(self, input_ids: torch.Tensor, clip_skip: torch.Tensor) -> torch.Tensor:
        states = self.network(input_ids.long(), output_hidden_states=True).hidden_states
        hidden: torch.Tensor = self.network.final_layer_norm(_layer(states, clip_skip))
        return hidden.float()


class XlTextEncoder(Wrapped):
    """As `TextEncoder`, but the layer before the last, without norm: what SDXL was trained with."""

    def forward(self, input_ids: torch.Tensor, clip_skip: torch.Tensor) -> torch.Tensor:
        states = self.network(input_ids.long(), output_hidden_states=True).hidden_states
        return _layer(states[:-1], clip_skip).float()


class XlTextEncoder2(Wrapped):
    """As `XlTextEncoder`, and the projection of the whole prompt, (rows, width), which no skipped layer changes."""

    def forward(self, input_ids: torch.Tensor, clip_skip: torch.Tensor) -> Tensors:
        output = self.network(input_ids.long(), output_hidden_states=True)
        return _layer(output.hidden_states[:-1], clip_skip).float(), output.text_embeds.float()


def _layer(states: Tensors, clip_skip: torch.Tensor) -> torch.Tensor:
    """The last of the hidden states, or as many before it as each row says."""
    stacked = torch.stack(states, dim=1)
    layer = (len(states) - 1 - clip_skip.long()).reshape(-1, 1, 1, 1).expand(-1, -1, *stacked.shape[2:])
    return stacked.gather(1, layer).squeeze(1)


class Unet(Wrapped):
    """(rows, c, h, w), (rows,) fp32 timesteps, (rows, tokens, width) to (rows, 4, h, w), fp32 outside.

    Every residual of a ControlNet is an argument of its own, since the tracer names inputs by arguments.
    """

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        down_residual_0: torch.Tensor | None = None,
        down_residual_1: torch.Tensor | None = None,
        down_residual_2: torch.Tensor | None = None,
        down_residual_3: torch.Tensor | None = None,
        down_residual_4: torch.Tensor | None = None,
        down_residual_5: torch.Tensor | None = None,
        down_residual_6: torch.Tensor | None = None,
        down_residual_7: torch.Tensor | None = None,
        down_residual_8: torch.Tensor | None = None,
        down_residual_9: torch.Tensor | None = None,
        down_residual_10: torch.Tensor | None = None,
        down_residual_11: torch.Tensor | None = None,
        mid_residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dtype = self.network.dtype
        residuals = (
            down_residual_0, down_residual_1, down_residual_2, down_residual_3, down_residual_4, down_residual_5,
            down_residual_6, down_residual_7, down_residual_8, down_residual_9, down_residual_10, down_residual_11,
        )  # fmt: skip
        output: torch.Tensor = self.network(
            sample.to(dtype),
            timestep,
            encoder_hidden_states.to(dtype),
            class_labels=None if class_labels is None else class_labels.long(),
            added_cond_kwargs=_added(text_embeds, time_ids),
            down_block_additional_residuals=tuple(r.to(dtype) for r in residuals if r is not None) or None,
            mid_block_additional_residual=None if mid_residual is None else mid_residual.to(dtype),
            return_dict=False,
        )[0]
        return output.float()


class ControlNet(Wrapped):
    """As `Unet`, with pixels (rows, 3, 8h, 8w) in [0, 1] and a factor per row, to residuals: down, then middle."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> Tensors:
        dtype = self.network.dtype
        down, middle = self.network(
            sample.to(dtype),
            timestep,
            encoder_hidden_states.to(dtype),
            controlnet_cond.to(dtype),
            added_cond_kwargs=_added(text_embeds, time_ids),
            return_dict=False,
        )
        factor = conditioning_scale.reshape(-1, 1, 1, 1)
        return tuple(residual.float() * factor for residual in (*down, middle))


def _added(text_embeds: torch.Tensor | None, time_ids: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
    """In fp32: fp16 has no integers above 2048, and the prompt is joined to sinusoids of the sizes, which are fp32."""
    if text_embeds is None or time_ids is None:
        return None
    return {"text_embeds": text_embeds, "time_ids": time_ids}


class VaeEncoder(Wrapped):
    """(rows, 3, 8h, 8w) in [-1, 1] to the posterior's moments (rows, 8, h, w): mean, then log-variance."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        posterior = self.network.encode(image.to(self.network.dtype), return_dict=False)[0]
        moments: torch.Tensor = posterior.parameters
        return moments.float()


class VaeDecoder(Wrapped):
    """(rows, 4, h, w) latents, already divided by the scaling factor, to pixels around [-1, 1]."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.network.decode(latent.to(self.network.dtype), return_dict=False)[0]
        return image.float()


class DepthEstimator(Wrapped):
    """(rows, 3, 384, 384) in [-1, 1] to (rows, 384, 384): larger is nearer, on no scale."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        depth: torch.Tensor = self.network(image.to(self.network.dtype)).predicted_depth
        return depth.float()


WRAPPERS: dict[str, type[Wrapped]] = {
    "text_encoder": TextEncoder,
    "text_encoder_2": XlTextEncoder2,
    "unet": Unet,
    "controlnet": ControlNet,
    "vae_encoder": VaeEncoder,
    "vae_decoder": VaeDecoder,
    "depth_estimator": DepthEstimator,
}


def wrapper_of(family: Family, name: str) -> type[Wrapped]:
    return XlTextEncoder if (family, name) == ("sdxl", "text_encoder") else WRAPPERS[name]


def load_component(checkpoint: Checkpoint, name: str, precision: Precision = "fp32") -> nn.Module:
    """The wrapped network of one component, its weights in that precision.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    network = checkpoint.network(PART_OF.get(name, name), precision)
    return wrapper_of(checkpoint.family, name)(network).eval()
