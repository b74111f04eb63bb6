"""The components of each checkpoint family as data: their tensors, with symbolic sizes.

Symbols: `rows` of a batch, `tokens` of a prompt, `height` and `width` of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.component import TensorSpec

# A UNet halves its latents up to three times and must double them back to the same size.
SIDE_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Widths:
    """The numbers of a checkpoint's configuration that its tensors depend on."""

    context_length: int
    context_width: int
    latent_channels: int
    unet_channels: int
    downscale: int


def text_to_image_components(widths: Widths) -> dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """Inputs and outputs of the components that Stable Diffusion 1.x and 2.x share.

    The UNet takes a timestep per row, so that rows at different steps share a call. The VAE encoder gives the
    moments (mean, then log-variance), so that the draw from them stays with the request's own generator. The text
    encoder leaves out as many of its last layers as `clip_skip` says, row by row.
    """
    latent = ("rows", widths.latent_channels, "height", "width")
    pixels = ("rows", 3, f"{widths.downscale}*height", f"{widths.downscale}*width")
    moments = ("rows", 2 * widths.latent_channels, "height", "width")
    return {
        "text_encoder": (
            (
                TensorSpec("input_ids", "int32", ("rows", widths.context_length)),
                TensorSpec("clip_skip", "int32", ("rows",)),
            ),
            (TensorSpec("last_hidden_state", "float32", ("rows", widths.context_length, widths.context_width)),),
        ),
        "unet": (
            (
                TensorSpec("sample", "float32", ("rows", widths.unet_channels, "height", "width")),
                TensorSpec("timestep", "float32", ("rows",)),
                TensorSpec("encoder_hidden_states", "float32", ("rows", "tokens", widths.context_width)),
            ),
            (TensorSpec("out_sample", "float32", latent),),
        ),
        "vae_encoder": ((TensorSpec("image", "float32", pixels),), (TensorSpec("moments", "float32", moments),)),
        "vae_decoder": ((TensorSpec("latent", "float32", latent),), (TensorSpec("image", "float32", pixels),)),
    }
