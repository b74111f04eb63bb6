"""Inputs from a seed, and a picture drawn with nothing but runners: what `engines verify` compares.

Two runs of the same loop are compared with each other only, so the loop is the plainest there is: DDIM on Stable
Diffusion's noise levels. Servers have their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.component import Arrays, Component, PipelineSpec, resolve
from engines.profiles import latent_sides
from engines.runner import Runner

Array: TypeAlias = npt.NDArray[np.float32]

GUIDANCE = 5.0
TRAINED_STEPS = 1000
# Below these numbers every vocabulary has tokens, every text encoder layers, and the upscaler noise levels.
INTEGERS = {"input_ids": 400, "clip_skip": 2, "class_labels": 350}
# What inputs range over that are not normal values; pictures are in [-1, 1], a ControlNet's in [0, 1].
RANGES = {"timestep": (0.0, 999.0), "image": (-1.0, 1.0), "controlnet_cond": (0.0, 1.0), "time_ids": (0.0, 1024.0)}


@dataclass(frozen=True, slots=True)
class Case:
    """What is run.

    Attributes:
        resolution: (height, width) in pixels.
        steps: of the picture; 0 draws none.
        rows: of the calls of each component by itself.
    """

    resolution: tuple[int, int]
    steps: int
    rows: int = 2
    seed: int = 0


def feeds(component: Component, spec: PipelineSpec, case: Case, rows: int) -> Arrays:
    """Inputs of a component, the same for every run of a case.

    Raises:
        BuildError: a resolution that no latent has.
    """
    height, width = latent_sides(case.resolution, spec.downscale)
    sizes = {"rows": rows, "tokens": spec.context_length, "height": height, "width": width}
    generator = np.random.default_rng((case.seed, len(component.name)))
    return {
        one.name: _values(one.name, one.dtype, [resolve(dim, sizes) for dim in one.shape], generator)
        for one in component.inputs
    }


def _values(name: str, dtype: str, shape: Sequence[int], generator: np.random.Generator) -> npt.NDArray[Any]:
    if name in INTEGERS:
        return generator.integers(INTEGERS[name], size=shape).astype(dtype)
    if name in RANGES:
        return generator.uniform(*RANGES[name], size=shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def levels(steps: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Timesteps (steps,) from noise to picture, and the share of signal at each and at the end, (steps + 1,)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TRAINED_STEPS) ** 2
    signal = np.cumprod(1 - betas)
    timesteps = np.linspace(TRAINED_STEPS - 1, 0, steps + 1).round().astype(np.int64)[:-1]
    return timesteps, np.append(signal[timesteps], 1.0)


def context(spec: PipelineSpec, texts: Mapping[str, Arrays]) -> Arrays:
    """The UNet's conditions that text encoders give, where they fit it: states side by side, and the pooled prompt."""
    wanted = {one.name: one.shape[-1] for one in spec.component("unet").inputs}
    found: Arrays = {}
    states = [outputs["last_hidden_state"] for outputs in texts.values() if "last_hidden_state" in outputs]
    if states and wanted["encoder_hidden_states"] == sum(state.shape[-1] for state in states):
        found["encoder_hidden_states"] = np.concatenate(states, axis=-1)
    pooled = [outputs["text_embeds"] for outputs in texts.values() if "text_embeds" in outputs]
    if pooled and "text_embeds" in wanted:
        found["text_embeds"] = pooled[-1]
    return found


def denoise(unet: Runner, spec: PipelineSpec, case: Case, conditions: Arrays) -> Array:
    """The latent of one picture, (1, channels, h, w); its two rows are an unguided and a guided one."""
    fed = feeds(unet.component, spec, case, 2) | conditions
    channels = spec.latent_channels
    x = fed["sample"][:1, :channels].astype(np.float64)
    timesteps, signal = levels(case.steps)
    for index, timestep in enumerate(timesteps):
        fed["sample"][:, :channels] = x
        fed["timestep"][:] = timestep
        plain, guided = unet.infer(fed)["out_sample"].astype(np.float64)
        noise, picture = _split(plain + GUIDANCE * (guided - plain), x, signal[index], spec.prediction_type)
        x = np.sqrt(signal[index + 1]) * picture + np.sqrt(1 - signal[index + 1]) * noise
    return x.astype(np.float32)


def _split(output: Any, x: Any, signal: float, prediction: str) -> tuple[Any, Any]:
    """The noise and the picture that a UNet's output says a latent is made of."""
    a, b = np.sqrt(signal), np.sqrt(1 - signal)
    if prediction == "v_prediction":
        return a * output + b * x, a * x - b * output
    if prediction == "sample":
        return (x - a * output) / b, output
    return output, (x - b * output) / a


def decode(decoder: Runner, spec: PipelineSpec, latent: Array) -> npt.NDArray[np.uint8]:
    """(3, H, W) pixels; what is no number becomes 0, and shows in the comparison of the components."""
    pixels = decoder.infer({"latent": latent / np.float32(spec.scaling_factor)})["image"][0]
    visible: npt.NDArray[np.uint8] = np.nan_to_num(np.round((pixels / 2 + 0.5).clip(0, 1) * 255)).astype(np.uint8)
    return visible
