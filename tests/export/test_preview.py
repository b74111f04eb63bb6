"""The projection that is fitted at export: right where the VAE is linear, and good where it is not."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engines.component import Projection
from export import preview
from export.checkpoint import Checkpoint
from export.embedded.autoencoder import pictures as drawn_pictures
from export.embedded.autoencoder import to_network
from export.errors import ExportError
from export.preview import fit_projection, preview_projection, random_pictures
from tests.conftest import EMBEDDED

MATRIX = np.array([[0.5, -1.25, 0.1], [0.0, 0.75, -0.3], [2.0, 0.2, 0.6], [-0.4, 0.3, 1.1]])
BIAS = np.array([0.1, -0.2, 0.3])

Floats = npt.NDArray[np.float32]


def coloured(latents: Floats, matrix: npt.NDArray[Any] = MATRIX, bias: npt.NDArray[Any] = BIAS) -> Floats:
    """What a linear decoder makes of latents (n, c, h, w)."""
    colours: npt.NDArray[Any] = np.einsum("nchw,cr->nrhw", latents, matrix) + bias[:, None, None]
    return colours.astype(np.float32)


def some_latents(channels: int = 4, seed: int = 0) -> Floats:
    """Neither centred nor of unit variance, and correlated as real ones are."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(channels) + 0.1 * rng.normal(size=(channels, channels))
    latents: npt.NDArray[Any] = np.einsum("nchw,cd->ndhw", rng.normal(0.5, 1.2, (2, channels, 8, 6)), mixing)
    return latents.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([4, 16]), size=st.sampled_from([0.01, 1.0, 30.0]))
def test_a_linear_decoder_is_recovered(seed: int, channels: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    matrix, bias = rng.normal(0, 1 / size, (channels, 3)), rng.normal(0, 1, 3)
    latents = size * some_latents(channels, seed)
    fitted = fit_projection(latents, coloured(latents, matrix, bias))
    np.testing.assert_allclose(fitted.matrix, matrix, rtol=1e-3, atol=1e-4 / size)
    np.testing.assert_allclose(fitted.bias, bias, rtol=1e-3, atol=1e-4)
    assert fitted.r_squared == pytest.approx(1, abs=1e-5)


def test_colours_that_have_nothing_to_do_with_the_latents_are_not_explained() -> None:
    fitted = fit_projection(some_latents(), some_latents(3, seed=1))
    assert fitted.r_squared == pytest.approx(0, abs=0.1)
    assert np.abs(fitted.matrix).max() < 0.3


def test_no_linear_map_explains_more() -> None:
    latents = some_latents()
    colours = np.tanh(coloured(latents))
    best = fit_projection(latents, colours)
    rng = np.random.default_rng(2)

    def explained(matrix: npt.NDArray[Any], bias: npt.NDArray[Any]) -> float:
        spread = np.square(colours - colours.mean(axis=(0, 2, 3), keepdims=True)).sum()
        return 1 - float(np.square(colours - coloured(latents, matrix, bias)).sum() / spread)

    matrix, bias = np.array(best.matrix), np.array(best.bias)
    assert explained(matrix, bias) == pytest.approx(best.r_squared, abs=1e-5)
    for _ in range(50):
        other = explained(matrix + rng.normal(0, 0.02, matrix.shape), bias + rng.normal(0, 0.02, 3))
        assert other < best.r_squared


def test_a_channel_that_never_changes_takes_no_part() -> None:
    latents = some_latents()
    latents[:, 2] = 7.0
    fitted = fit_projection(latents, coloured(latents))
    np.testing.assert_allclose(np.array(fitted.matrix)[[0, 1, 3]], MATRIX[[0, 1, 3]], rtol=1e-3, atol=1e-4)
    assert np.abs(fitted.matrix[2]).max() == 0
    np.testing.assert_allclose(fitted.bias, BIAS + 7 * MATRIX[2], rtol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.25])
def test_a_broken_encoder_is_refused_with_a_remedy(value: float) -> None:
    latents = np.full((1, 4, 4, 4), value, np.float32)
    with pytest.raises(ExportError, match="no usable latents of pictures; download the checkpoint again"):
        fit_projection(latents, some_latents(3)[:1, :, :4, :4])


def test_pictures_are_the_same_every_time_and_unlike_each_other() -> None:
    pictures = random_pictures(3, 64, 8)
    assert np.array_equal(pictures, random_pictures(3, 64, 8))
    assert not np.array_equal(pictures, random_pictures(3, 64, 8, seed=1))
    assert pictures.shape == (3, 3, 64, 64)
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_pictures_have_all_colours_and_many_of_them() -> None:
    pictures = random_pictures(preview.PICTURES, 256, 8)
    assert -1 <= pictures.min() < -0.99
    assert 0.99 < pictures.max() <= 1
    assert np.abs(pictures.mean(axis=(0, 2, 3))).max() < 0.25
    assert np.abs(np.corrcoef(pictures.transpose(1, 0, 2, 3).reshape(3, -1)) - np.eye(3)).max() < 0.25
    colours = np.unique(pictures.transpose(0, 2, 3, 1).reshape(-1, 3), axis=0)
    assert len(colours) > 10 * preview.PICTURES


class LinearVae(nn.Module):
    """Averages pixels and mixes the colours; its moments are means, then nonsense."""

    def __init__(self, downscale: int, mixing: npt.NDArray[Any]) -> None:
        super().__init__()
        self.downscale, self.mixing = downscale, torch.from_numpy(mixing).float()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(image.shape))
        small = nn.functional.avg_pool2d(image, self.downscale)
        means = torch.einsum("nrhw,rc->nchw", small, self.mixing)
        return torch.cat([means, torch.full_like(means, 1e9)], dim=1)


@dataclass
class LinearCheckpoint:
    """As much of a checkpoint as the fit looks at."""

    downscale: int
    scaling_factor: float
    channels: int = 4
    widths: Any = field(init=False)

    def __post_init__(self) -> None:
        self.widths = type("Widths", (), {"latent_channels": self.channels})


@pytest.mark.parametrize(("downscale", "scaling_factor"), [(8, 0.18215), (8, 0.13025), (4, 1.5)])
def test_the_projection_takes_latents_in_the_unets_scale(
    monkeypatch: pytest.MonkeyPatch, downscale: int, scaling_factor: float
) -> None:
    mixing = np.array([[4.0, 1, 0, 1], [0, 5, 1, -1], [1, 0, 6, 2]])
    vae = LinearVae(downscale, mixing)
    monkeypatch.setattr(preview, "load_component", lambda checkpoint, name: {"vae_encoder": vae}[name])
    found: Any = preview_projection(LinearCheckpoint(downscale, scaling_factor))  # type: ignore[arg-type]
    assert found.r_squared == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(scaling_factor * mixing @ found.matrix, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(found.bias, 0, atol=1e-3)
    side = preview.SIDE * downscale
    assert vae.calls == [(1, 3, side, side)] * preview.PICTURES


def test_the_embedded_vae_is_approximated_nearly_as_well_as_can_be(caplog: pytest.LogCaptureFixture) -> None:
    """Against the best linear map of the latents of pictures that the checkpoint was made for."""
    checkpoint = Checkpoint.open(str(EMBEDDED))
    with caplog.at_level(logging.INFO, "export.preview"):
        projection = preview_projection(checkpoint)
    assert preview_projection(checkpoint) == projection
    assert f"explains {100 * projection.r_squared:.0f} % of the colours" in caplog.text
    vae = checkpoint.network("vae")
    with torch.no_grad():
        latents = vae.encode(to_network(drawn_pictures(32, seed=5))).latent_dist.mean
        decoded = nn.functional.avg_pool2d(vae.decode(latents).sample.clamp(-1, 1), checkpoint.downscale).numpy()
    scaled = (latents * checkpoint.scaling_factor).numpy()
    best = fit_projection(scaled, decoded)

    def error(of: Projection) -> float:
        return float(np.square(coloured(scaled, np.array(of.matrix), np.array(of.bias)).clip(-1, 1) - decoded).mean())

    spread = float(decoded.var(axis=(0, 2, 3)).mean())
    assert 0.5 < projection.r_squared < 0.65
    assert 1 - error(best) / spread < 0.75
    assert error(projection) < 1.2 * error(best)
    assert 1 - error(projection) / spread > 0.58


def test_the_tiny_checkpoint_has_a_projection_too(tiny_checkpoint: Path) -> None:
    projection = preview_projection(Checkpoint.open(str(tiny_checkpoint)))
    assert np.array(projection.matrix).shape == (4, 3)
    assert np.isfinite(projection.matrix).all()
    assert 0 <= projection.r_squared < 1
