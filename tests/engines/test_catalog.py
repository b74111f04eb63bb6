"""The tensors of Stable Diffusion 1.x and 2.x, as every other part of the project relies on them."""

import numpy as np
import pytest

from engines.catalog import COMPONENTS, Widths, components_of
from engines.component import Component, Family, Task, TensorSpec, resolve

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


SD15 = Widths(77, 768, 4, 4, 8, stage_channels=(320, 640, 1280, 1280))
XL = Widths(
    77, 2048, 4, 4, 8, text_width=768, text_width_2=1280, pooled_width=1280, time_ids=6,
    stage_channels=(320, 640, 1280),
)  # fmt: skip


def shapes(tensors: tuple[TensorSpec, ...]) -> list[tuple[int | str, ...]]:
    return [spec.shape[1:] for spec in tensors]


def test_a_controlnet_gives_thirteen_residuals_of_stable_diffusion_1() -> None:
    """The shapes that the ControlNet of Stable Diffusion 1.5 gives at 64x64 latents, as published."""
    _, given = components_of("controlnet", "control", SD15)["controlnet"]
    at_64 = [(shape[0], resolve(shape[1], {"height": 64})) for shape in shapes(given)]
    assert at_64 == [
        *[(320, 64)] * 3, (320, 32), *[(640, 32)] * 2, (640, 16), *[(1280, 16)] * 2, *[(1280, 8)] * 4,
    ]  # fmt: skip
    assert [spec.name for spec in given] == [*(f"down_residual_{i}" for i in range(12)), "mid_residual"]


def test_a_controlnet_gives_ten_residuals_of_sdxl() -> None:
    _, given = components_of("controlnet", "control", XL)["controlnet"]
    at_128 = [(shape[0], resolve(shape[1], {"height": 128})) for shape in shapes(given)]
    assert at_128 == [
        *[(320, 128)] * 3, (320, 64), *[(640, 64)] * 2, (640, 32), *[(1280, 32)] * 3,
    ]  # fmt: skip


@pytest.mark.parametrize(("family", "widths"), [("sd1", SD15), ("sdxl", XL)])
def test_a_controlled_unet_takes_what_a_controlnet_gives(family: Family, widths: Widths) -> None:
    _, given = components_of("controlnet", "control", widths)["controlnet"]
    plain, _ = components_of(family, "text_to_image", widths)["unet"]
    controlled, _ = components_of(family, "text_to_image", widths, controlled=True)["unet"]
    assert controlled == (*plain, *given)


def test_sdxl_takes_the_prompt_as_a_whole_and_sizes() -> None:
    found = components_of("sdxl", "text_to_image", XL)
    assert shapes(found["unet"][0])[3:] == [(1280,), (6,)]
    assert [spec.name for spec in found["unet"][0]][3:] == ["text_embeds", "time_ids"]
    (hidden,), (hidden_2, pooled) = found["text_encoder"][1], found["text_encoder_2"][1]
    assert hidden.shape[2] == 768
    assert (hidden_2.shape[2], pooled.shape) == (1280, ("rows", 1280))


def test_the_upscaler_takes_a_noise_level_per_row() -> None:
    inputs, _ = components_of("x4", "upscaling", Widths(77, 1024, 4, 7, 4))["unet"]
    assert TensorSpec("class_labels", "int32", ("rows",)) in inputs


def test_the_depth_estimator_takes_pictures_of_one_size() -> None:
    widths = Widths(77, 1024, 4, 5, 8, depth_side=384)
    (image,), (depth,) = components_of("sd2", "depth", widths)["depth_estimator"]
    assert (image.shape, depth.shape) == (("rows", 3, 384, 384), ("rows", 384, 384))


@pytest.mark.parametrize(("family", "task"), COMPONENTS)
def test_names_of_tensors_differ_within_a_component(family: Family, task: Task) -> None:
    for inputs, outputs in components_of(family, task, XL, controlled=True).values():
        names = [spec.name for spec in (*inputs, *outputs)]
        assert len(set(names)) == len(names)


def test_pixels_are_bound_through_the_downscale() -> None:
    inputs, outputs = tensors("vae_encoder", Widths(77, 768, latent_channels=4, unet_channels=4, downscale=4))
    component = Component("vae_encoder", "vae_encoder.onnx", inputs, outputs)
    bound = component.bind({"image": np.zeros((1, 3, 64, 96), np.float32)})
    assert bound == {"rows": 1, "height": 16, "width": 24}
