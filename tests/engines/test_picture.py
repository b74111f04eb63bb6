"""The picture that `engines verify` draws: inputs from a seed, and a loop that comes from noise to a picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.component import Component, PipelineSpec, TensorSpec
from engines.picture import GUIDANCE, Case, context, decode, denoise, feeds, levels
from engines.runner import FakeRunner

CASE = Case((64, 64), 8)


@pytest.fixture
def spec(fake_export: Path) -> PipelineSpec:
    return PipelineSpec.read(fake_export)


def test_inputs_fit_every_component_and_come_again(spec: PipelineSpec) -> None:
    for component in spec.components.values():
        first, again = (feeds(component, spec, CASE, 3) for _ in range(2))
        assert component.bind(first)["rows"] == 3
        for name, array in first.items():
            np.testing.assert_array_equal(array, again[name])


def test_another_seed_gives_other_inputs(spec: PipelineSpec) -> None:
    unet = spec.component("unet")
    one, other = feeds(unet, spec, CASE, 2), feeds(unet, spec, replace(CASE, seed=1), 2)
    assert not np.array_equal(one["sample"], other["sample"])


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"),
    [
        ("input_ids", "int32", 0, 399),
        ("clip_skip", "int32", 0, 1),
        ("class_labels", "int32", 0, 349),
        ("timestep", "float32", 0, 999),
        ("image", "float32", -1, 1),
        ("controlnet_cond", "float32", 0, 1),
    ],
)
def test_inputs_stay_in_the_range_that_they_have(
    spec: PipelineSpec, name: str, dtype: str, low: float, high: float
) -> None:
    component = Component("x", "x.onnx", (TensorSpec(name, dtype, ("rows", 100)),), ())
    values = feeds(component, spec, CASE, 10)[name]
    assert values.dtype == dtype
    assert low <= values.min() < values.max() <= high


def test_levels_lead_from_noise_to_a_picture() -> None:
    timesteps, signal = levels(20)
    assert (timesteps[0], len(timesteps), len(signal)) == (999, 20, 21)
    assert (np.diff(timesteps) < 0).all()
    assert signal[0] == pytest.approx(0.0046601, rel=1e-4)
    assert (np.diff(signal) > 0).all()
    assert signal[-1] == 1


class Knowing:
    """A UNet that knows the picture, and says so in the terms of its prediction type; guidance changes nothing."""

    provider = "knowing"

    def __init__(self, component: Component, picture: Any, prediction: str) -> None:
        self.component = component
        self._picture = picture
        self._prediction = prediction

    def infer(self, feeds: Any) -> dict[str, Any]:
        self.component.bind(feeds)
        timesteps, signal = levels(CASE.steps)
        share = signal[list(timesteps).index(int(feeds["timestep"][0]))]
        a, b = np.sqrt(share), np.sqrt(1 - share)
        x = feeds["sample"].astype(np.float64)
        noise = (x - a * self._picture) / b
        outputs = {"epsilon": noise, "sample": np.broadcast_to(self._picture, x.shape)}
        outputs["v_prediction"] = a * noise - b * self._picture
        return {"out_sample": outputs[self._prediction].astype(np.float32)}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_unet_that_knows_the_picture_draws_it(spec: PipelineSpec, prediction: str) -> None:
    told = replace(spec, prediction_type=prediction)
    picture = np.random.default_rng(5).standard_normal((1, 4, 8, 8))
    unet = Knowing(spec.component("unet"), picture, prediction)
    np.testing.assert_allclose(denoise(unet, told, CASE, {}), picture, atol=1e-4)


def test_guidance_leads_away_from_the_first_row(spec: PipelineSpec) -> None:
    class Rows(FakeRunner):
        def infer(self, feeds: Any) -> dict[str, Any]:
            plain, guided = np.zeros_like(feeds["sample"][:1]), np.ones_like(feeds["sample"][:1])
            return {"out_sample": np.concatenate([plain, guided])}

    told = replace(spec, prediction_type="sample")
    latent = denoise(Rows(spec.component("unet")), told, CASE, {})
    np.testing.assert_allclose(latent, np.full((1, 4, 8, 8), GUIDANCE), rtol=1e-6)


def test_conditions_are_the_text_encoders_where_they_fit(spec: PipelineSpec) -> None:
    states = np.ones((2, 77, 8), np.float32)
    assert list(context(spec, {"text_encoder": {"last_hidden_state": states}})) == ["encoder_hidden_states"]
    assert context(spec, {"text_encoder": {"last_hidden_state": states[..., :5]}}) == {}
    assert context(spec, {}) == {}


def test_two_text_encoders_stand_side_by_side(spec: PipelineSpec) -> None:
    unet = spec.component("unet")
    pooled = replace(unet, inputs=(*unet.inputs, TensorSpec("text_embeds", "float32", ("rows", 6))))
    both = {
        "text_encoder": {"last_hidden_state": np.zeros((2, 77, 3), np.float32)},
        "text_encoder_2": {
            "last_hidden_state": np.ones((2, 77, 5), np.float32),
            "text_embeds": np.ones((2, 6), np.float32),
        },
    }
    found = context(replace(spec, components={**spec.components, "unet": pooled}), both)
    assert found["encoder_hidden_states"][0, 0].tolist() == [0] * 3 + [1] * 5
    assert found["text_embeds"].shape == (2, 6)


def test_pixels_are_rounded_and_cut_off_and_never_nan(spec: PipelineSpec) -> None:
    class Decoder(FakeRunner):
        def infer(self, feeds: Any) -> dict[str, Any]:
            return {"image": np.array([-2, -1, 0, 0.5, 1, np.nan], np.float32).reshape(1, 1, 1, 6)}

    pixels = decode(Decoder(spec.component("vae_decoder")), spec, np.zeros((1, 4, 8, 8), np.float32))
    assert pixels.ravel().tolist() == [0, 0, 128, 191, 255, 0]
