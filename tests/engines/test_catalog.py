"""The tensors of Stable Diffusion 1.x and 2.x, as every other part of the project relies on them."""

import numpy as np

from engines.catalog import Widths, components_of
from engines.component import Component, TensorSpec

SD2 = Widths(context_length=77, context_width=1024, latent_channels=4, unet_channels=4, downscale=8)


def tensors(name: str, widths: Widths = SD2) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return components_of("sd1", "text_to_image", widths)[name]


def test_every_component_has_rows_first_and_one_output() -> None:
    found = components_of("sd1", "text_to_image", SD2)
    assert set(found) == {"text_encoder", "unet", "vae_encoder", "vae_decoder"}
    for inputs, outputs in found.values():
        assert len(outputs) == 1
        assert all(spec.shape[0] == "rows" for spec in (*inputs, *outputs))


def test_unet_takes_a_float_timestep_per_row() -> None:
    inputs, _ = tensors("unet")
    assert TensorSpec("timestep", "float32", ("rows",)) in inputs


def test_text_encoder_takes_int32_ids_and_gives_the_width_that_the_unet_takes() -> None:
    (ids, skip), (hidden,) = tensors("text_encoder")
    context = {spec.name: spec for spec in tensors("unet")[0]}["encoder_hidden_states"]
    assert (ids.dtype, ids.shape) == ("int32", ("rows", 77))
    assert (skip.dtype, skip.shape) == ("int32", ("rows",))
    assert hidden.shape[2] == context.shape[2] == 1024


def test_vae_encoder_gives_moments_of_twice_the_channels() -> None:
    _, (moments,) = tensors("vae_encoder")
    assert (moments.name, moments.shape) == ("moments", ("rows", 8, "height", "width"))


def test_unet_of_another_width_still_gives_latents() -> None:
    inputs, (out,) = tensors("unet", Widths(77, 768, latent_channels=4, unet_channels=9, downscale=8))
    assert (inputs[0].shape[1], out.shape[1]) == (9, 4)


def test_pixels_are_bound_through_the_downscale() -> None:
    inputs, outputs = tensors("vae_encoder", Widths(77, 768, latent_channels=4, unet_channels=4, downscale=4))
    component = Component("vae_encoder", "vae_encoder.onnx", inputs, outputs)
    bound = component.bind({"image": np.zeros((1, 3, 64, 96), np.float32)})
    assert bound == {"rows": 1, "height": 16, "width": 24}
