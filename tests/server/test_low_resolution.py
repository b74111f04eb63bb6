"""server.low_resolution against diffusers' DDPMScheduler and the values measured with it."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from server.errors import InvalidRequest
from server.low_resolution import LowResolutionNoise
from server.noise import Float32Array, TorchGenerator

# Of the published checkpoint, `low_res_scheduler/scheduler_config.json`.
CONFIG = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "clip_sample": True}
ANCHORS = {20: (0.99865, 0.05195), 100: (0.98548, 0.16978), 350: (0.80030, 0.59960)}


def picture() -> Float32Array:
    return np.clip(TorchGenerator(9).normal((3, 24, 32)), -1, 1)


@pytest.mark.parametrize("level", ANCHORS)
def test_the_mix_has_the_published_values(level: int) -> None:
    assert LowResolutionNoise(CONFIG).mix(level) == pytest.approx(ANCHORS[level], abs=5e-6)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
@pytest.mark.parametrize("level", [0, 20, 350])
def test_the_noisy_picture_equals_diffusers(kind: str, level: int) -> None:
    config = {**CONFIG, "beta_schedule": kind}
    generator = torch.Generator().manual_seed(11)
    image = torch.from_numpy(picture())[None]
    drawn = torch.randn(image.shape, generator=generator)
    reference = DDPMScheduler(**config).add_noise(image, drawn, torch.tensor([level]))[0].numpy()
    ours = TorchGenerator(11)
    noisy = LowResolutionNoise(config).apply(picture(), level, ours)
    assert noisy.dtype == np.float32
    np.testing.assert_allclose(noisy, reference, rtol=0, atol=1e-6)
    # The latent's noise is drawn next.
    np.testing.assert_array_equal(ours.normal((4, 24, 32)), torch.randn((4, 24, 32), generator=generator).numpy())


@pytest.mark.parametrize("level", [-1, 351, 1000])
def test_levels_it_was_not_trained_on_are_refused(level: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"noise_level is {level}; .* 0 .* 350"):
        LowResolutionNoise(CONFIG).apply(picture(), level, TorchGenerator(0))


def test_the_highest_level_is_the_operators() -> None:
    noise = LowResolutionNoise(CONFIG, highest=100)
    noise.check(100)
    with pytest.raises(InvalidRequest, match="100"):
        noise.check(101)
