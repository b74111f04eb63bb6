"""server.latents against diffusers' DiagonalGaussianDistribution and add_noise."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from server.latents import draw_latent, encoded_latent, noised
from server.noise import Float32Array, TorchGenerator
from server.schedule import TrainedSchedule

SCALE = 0.18215
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def moments(spread: float = 1.0) -> Float32Array:
    return np.float32(spread) * TorchGenerator(5).normal((8, 16, 12))


# A spread of 20 has log-variances beyond both bounds.
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_the_draw_equals_diffusers(spread: float) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        posterior = DiagonalGaussianDistribution(torch.from_numpy(moments(spread))[None])
        reference = (posterior.sample(generator) * SCALE)[0].numpy()
    ours = draw_latent(moments(spread), TorchGenerator(7), SCALE)
    assert ours.dtype == np.float32
    assert np.abs(moments(20.0)[4:]).max() > 30
    np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-6)


def test_the_order_of_draws_is_that_of_image_to_image() -> None:
    generator = torch.Generator().manual_seed(3)
    sample = DiagonalGaussianDistribution(torch.from_numpy(moments())[None]).sample(generator) * SCALE
    noise = torch.randn(sample.shape, generator=generator)
    scheduler = DDIMScheduler(**SD)
    reference = scheduler.add_noise(sample, noise, torch.tensor([601]))[0].numpy()
    ours = TorchGenerator(3)
    clean = draw_latent(moments(), ours, SCALE)
    level = TrainedSchedule.from_config(SD).level(601)
    latent = noised(clean, ours.normal(clean.shape), level.alpha, level.sigma)
    assert latent.dtype == np.float32
    np.testing.assert_allclose(latent, reference, rtol=0, atol=2e-6)


def test_without_noise_it_is_the_mode() -> None:
    latent = encoded_latent(moments(), np.zeros((4, 16, 12), np.float32), SCALE)
    np.testing.assert_array_equal(latent, moments()[:4] * np.float32(SCALE))


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(8, 16, 12\).*\(4, 16, 12\)"):
        encoded_latent(moments(), np.zeros((8, 16, 12), np.float32), SCALE)
