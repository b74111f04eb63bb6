"""The upscaler's VAE begins with the weights of the embedded one."""

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from export.embedded.autoencoder import disturbed, new_vae, rescale, shallower_vae


def test_a_shallower_vae_begins_with_all_but_the_lowest_level() -> None:
    torch.manual_seed(0)
    deep = new_vae()
    shallow = shallower_vae(deep)
    ours, theirs = shallow.state_dict(), deep.state_dict()
    assert shallow.config.block_out_channels == (16, 32, 64)
    for name in ("encoder.conv_in.weight", "encoder.down_blocks.2.resnets.0.conv1.weight", "decoder.conv_out.bias"):
        assert torch.equal(ours[name], theirs[name])
    for level in (0, 1, 2):
        block, origin = f"decoder.up_blocks.{level}.", f"decoder.up_blocks.{level + 1}."
        parts = [name for name in ours if name.startswith(block)]
        assert len(parts) > 10
        for name in parts:
            assert torch.equal(ours[name], theirs[name.replace(block, origin)]), name
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if ".mid_block." in name)


def test_a_rescaled_vae_has_the_same_scaled_latents_and_pictures() -> None:
    torch.manual_seed(1)
    vae = new_vae().eval()
    vae.register_to_config(scaling_factor=0.5)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        picture = vae.decode(before.mean).sample
        rescale(vae, 0.08)
        after = vae.encode(pixels).latent_dist
        assert vae.config.scaling_factor == 0.08
        torch.testing.assert_close(after.mean * 0.08, before.mean * 0.5)
        torch.testing.assert_close(after.std * 0.08, before.std * 0.5)
        torch.testing.assert_close(vae.decode(after.mean).sample, picture)


def test_a_shallower_vae_has_latents_of_twice_the_side() -> None:
    shallow = shallower_vae(new_vae()).eval()
    with torch.no_grad():
        latents = shallow.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mean
        pixels = shallow.decode(latents).sample
    assert (latents.shape, pixels.shape) == ((1, 4, 8, 8), (1, 3, 32, 32))


@pytest.mark.parametrize(("disturbance", "spread"), [(0.0, 0.5), (1.2, 1.3)])
def test_a_sample_spreads_as_the_posterior_and_the_disturbance_together(disturbance: float, spread: float) -> None:
    mean = torch.full((1, 4, 100, 100), 3.0)
    posterior = DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, 0.25).log()], dim=1))
    sample = disturbed(posterior, disturbance, torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(3.0, abs=0.02)
    assert sample.std().item() == pytest.approx(spread, rel=0.02)
