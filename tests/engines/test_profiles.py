"""The shapes that components are compiled for."""

import pytest

from engines.component import Component, TensorSpec
from engines.errors import BuildError
from engines.profiles import (
    TOKENS,
    Bounds,
    Rows,
    ShapeRange,
    Tokens,
    common_sizes,
    component_profile,
    default_rows,
    depends_on_resolution,
    latent_sides,
    reach,
)
from tests.toy_export import TENSORS

UNET = Component("unet", "unet.onnx", *TENSORS["unet"])
TEXT_ENCODER = Component("text_encoder", "text_encoder.onnx", *TENSORS["text_encoder"])


def test_rows_and_tokens_vary_and_sides_do_not() -> None:
    assert component_profile(UNET, (64, 96), Rows(1, 8, 16), Tokens(77, 77, 231)) == {
        "sample": ShapeRange((1, 4, 64, 96), (8, 4, 64, 96), (16, 4, 64, 96)),
        "encoder_hidden_states": ShapeRange((1, 77, 8), (8, 77, 8), (16, 231, 8)),
    }


def test_sizes_may_be_multiples_and_parts_of_a_side() -> None:
    spec = TensorSpec("residual", "float32", ("rows", 3, "8*height", "width/4"))
    profile = component_profile(Component("controlnet", "c.onnx", (spec,), ()), (64, 96), Rows(1, 1, 2))
    assert profile["residual"] == ShapeRange((1, 3, 512, 24), (1, 3, 512, 24), (2, 3, 512, 24))


def test_an_unknown_size_is_refused_by_name() -> None:
    stranger = Component("unet", "unet.onnx", (TensorSpec("sample", "float32", ("rows", "frames")),), ())
    with pytest.raises(BuildError, match="frames"):
        component_profile(stranger, (64, 64), Rows(1, 1, 1))


def test_only_components_with_sides_depend_on_the_resolution() -> None:
    assert depends_on_resolution(UNET)
    assert not depends_on_resolution(TEXT_ENCODER)


@pytest.mark.parametrize("numbers", [(0, 1, 2), (2, 1, 2), (1, 3, 2)])
def test_bounds_that_do_not_rise_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(BuildError, match="write minimum:optimum:maximum"):
        Bounds(*numbers)


def test_bounds_are_cut_off_at_a_limit() -> None:
    assert Rows(1, 8, 16).at_most(4) == Rows(1, 4, 4)
    assert Rows(1, 2, 16).at_most(4) == Rows(1, 2, 4)


@pytest.mark.parametrize("resolution", [(0, 512), (512, 500), (96, 512), (520, 512)])
def test_an_impossible_resolution_is_refused_with_the_multiple(resolution: tuple[int, int]) -> None:
    with pytest.raises(BuildError, match="multiples of 64 pixels"):
        latent_sides(resolution, 8)


def test_a_latent_is_smaller_by_the_checkpoints_factor() -> None:
    assert latent_sides((512, 768), 8) == (64, 96)
    assert latent_sides((512, 768), 4) == (128, 192)


def test_plans_take_as_many_tokens_as_a_server_sends() -> None:
    assert str(TOKENS) == "77:77:616"
    assert component_profile(UNET, (64, 64), Rows(1, 1, 1))["encoder_hidden_states"].maximum == (1, 616, 8)


def test_several_profiles_have_in_common_what_each_takes() -> None:
    profiles = [
        component_profile(UNET, (64, 64), Rows(1, 8, 16)),
        component_profile(UNET, (96, 96), Rows(2, 4, 8), Tokens(77, 77, 231)),
    ]
    assert common_sizes(UNET, profiles) == {"rows": (2, 8), "tokens": (77, 231)}
    assert common_sizes(UNET, []) == {}
    assert list(common_sizes(TEXT_ENCODER, [component_profile(TEXT_ENCODER, (64, 64), Rows(1, 2, 8))])) == ["rows"]


def test_of_plans_with_as_many_rows_the_one_with_more_tokens_reaches_further() -> None:
    few, many, long = (
        component_profile(UNET, (64, 64), Rows(1, 1, rows), Tokens(77, 77, tokens))
        for rows, tokens in ((8, 616), (16, 231), (16, 616))
    )
    assert reach(few) < reach(many) < reach(long)


def test_networks_of_every_step_take_more_rows() -> None:
    assert default_rows("unet") == default_rows("controlnet") == Rows(1, 8, 16)
    assert default_rows("vae_decoder").maximum < 16
