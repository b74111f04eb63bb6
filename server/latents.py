"""Latents that begin as a picture: the draw from the VAE encoder's moments, and the noise of a job that starts late.

Every draw is made from the job's own generator, for one image at a time, in diffusers' order:

* image-to-image, depth    posterior of the picture, noise
* inpainting, 4 channels   posterior of the picture, noise
* inpainting, 9 channels   noise, posterior of the masked picture; below strength 1 that of the picture comes first
* upscaling                noise of the low-resolution picture (`server.low_resolution`), noise

where noise is that of the first latent. The draws of the sampler's steps follow.
"""

from typing import Final

import numpy as np

from server.noise import Float32Array, Noise

# Bounds of the log-variance that diffusers' VAEs are trained with.
LOG_VARIANCE: Final = (-30.0, 20.0)


def encoded_latent(moments: Float32Array, noise: Float32Array, scaling_factor: float) -> Float32Array:
    """A latent in the UNet's scale: (mean + standard deviation * noise) * scaling factor.

    Args:
        moments: (2c, h, w) of the `vae_encoder`: the means, then the log-variances.
        noise: (c, h, w) standard normal; zeros give the mode.
        scaling_factor: of the checkpoint's VAE.

    Returns:
        A new float32 array (c, h, w).

    Raises:
        ValueError: the noise is not of the means' shape.

    Source: `DiagonalGaussianDistribution.sample` in diffusers' models/autoencoders/vae.py.
    """
    mean, log_variance = np.split(moments.astype(np.float32, copy=False), 2)
    if noise.shape != mean.shape:
        raise ValueError(f"noise of shape {noise.shape} cannot be added to means of shape {mean.shape}: give one of it")
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, *LOG_VARIANCE))
    latent: Float32Array = (mean + deviation * noise) * np.float32(scaling_factor)
    return latent


def draw_latent(moments: Float32Array, noise: Noise, scaling_factor: float) -> Float32Array:
    """`encoded_latent` with the posterior's one draw, (c, h, w), made here.

    The picture's comes before the first latent's noise, that of a masked picture for a 9-channel UNet after it.
    """
    channels, height, width = moments.shape
    return encoded_latent(moments, noise.normal((channels // 2, height, width)), scaling_factor)


def noised(clean: Float32Array, noise: Float32Array, alpha: float, sigma: float) -> Float32Array:
    """alpha * clean + sigma * noise: the latent at a noise level, from which a job starts late.

    Args:
        clean: (c, h, w) in the UNet's scale.
        noise: (c, h, w), drawn after the picture's posterior.
        alpha, sigma: the signal and the noise of the level at which the table begins.

    Returns:
        A new float32 array (c, h, w).
    """
    latent: Float32Array = np.float32(alpha) * clean + np.float32(sigma) * noise
    return latent
