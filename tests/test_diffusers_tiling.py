"""tests.diffusers_tiling against diffusers' AutoencoderKL with tiling enabled."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from server.noise import Float32Array, TorchGenerator
from tests.diffusers_tiling import tiled_decode, tiled_encode

# Clipped tiles of several sizes: 2 and 14 values; 4 and 16; one axis that fits.
SIZES = [(26, 26), (28, 40), (33, 17), (16, 30), (50, 16)]
TILE = 16


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=TILE * 4,
        ).eval()
    network.enable_tiling()
    return network


class Counted:
    """The whole network without tiling, as the tiles' engine; notes the shapes it is given."""

    def __init__(self, vae: Any, verb: str) -> None:
        self._vae = vae
        self._verb = verb
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, values: Float32Array) -> Float32Array:
        self.shapes.append(values.shape)
        with torch.no_grad():
            tensor = torch.from_numpy(np.ascontiguousarray(values))
            if self._verb == "decode":
                result = self._vae.decoder(self._vae.post_quant_conv(tensor))
            else:
                result = self._vae.quant_conv(self._vae.encoder(tensor))
        found: Float32Array = result.numpy()
        return found


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_equals_diffusers(vae: Any, size: tuple[int, int], batch: int) -> None:
    latents = TorchGenerator(1).normal((2, 4, *size))
    with torch.no_grad():
        reference = vae.decode(torch.from_numpy(latents)).sample.numpy()
    ours = tiled_decode(Counted(vae, "decode"), latents, 4, TILE, batch=batch)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_encoding_equals_diffusers(vae: Any, size: tuple[int, int]) -> None:
    pictures = np.tanh(TorchGenerator(2).normal((1, 3, size[0] * 4, size[1] * 4)))
    with torch.no_grad():
        reference = vae.encode(torch.from_numpy(pictures)).latent_dist.parameters.numpy()
    ours = tiled_encode(Counted(vae, "encode"), pictures, 4, TILE, batch=2)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4)


def test_another_overlap_equals_diffusers(vae: Any) -> None:
    latents = TorchGenerator(3).normal((1, 4, 30, 41))
    vae.tile_overlap_factor = 0.5
    try:
        with torch.no_grad():
            reference = vae.decode(torch.from_numpy(latents)).sample.numpy()
    finally:
        vae.tile_overlap_factor = 0.25
    ours = tiled_decode(Counted(vae, "decode"), latents, 4, TILE, overlap=0.5, batch=4)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4)


def test_what_fits_a_tile_is_run_whole(vae: Any) -> None:
    network = Counted(vae, "decode")
    latents = TorchGenerator(4).normal((2, 4, TILE, 9))
    np.testing.assert_array_equal(tiled_decode(network, latents, 4, TILE), Counted(vae, "decode")(latents))
    assert network.shapes == [latents.shape]


def test_tiles_of_one_shape_share_calls_up_to_the_cap(vae: Any) -> None:
    network = Counted(vae, "decode")
    tiled_decode(network, TorchGenerator(5).normal((1, 4, 16, 40)), 4, TILE, batch=2)
    # Tiles begin at 0, 12, 24 and 36 across, and at 0 and 12 down, though the first ones reach the lower edge.
    assert network.shapes == [(n, 4, h, w) for h in (16, 4) for n, w in ((2, 16), (1, 16), (1, 4))]


@pytest.mark.parametrize(("tile", "overlap"), [(10, 0.25), (16, 1.0), (16, -0.25)])
def test_an_overlap_that_is_no_whole_number_is_refused(tile: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="whole number"):
        tiled_decode(lambda latents: latents, np.zeros((1, 4, 40, 40), np.float32), 4, tile, overlap)
