"""Pictures decoded and encoded in tiles or one by one, with a real VAE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from server.pipeline import Pipeline
from server.resizing import to_network
from server.rows import Array
from server.tiling import Tiling, tiled_decode
from tests.conftest import ROOT
from tests.drawing import Drawing, Recording, psnr, scene

SIDE = 192


@pytest.fixture(scope="module")
def drawing(embedded_export: Path) -> Iterator[Drawing]:
    config = ServerConfig(model=embedded_export, name="base", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def tiled(drawing: Drawing, tile: int) -> tuple[Pipeline, dict[str, Recording]]:
    """The checkpoint with its VAE in tiles of that side, and what that is fed."""
    base = drawing.checkpoints["base"]
    vae = {name: Recording(base.runners[name]) for name in ("vae_decoder", "vae_encoder")}
    return Pipeline(base.spec, ROOT / "out" / "export", {**base.runners, **vae}, "base", tile), vae


@pytest.fixture(scope="module")
def latents(drawing: Drawing) -> Array:
    """Of a picture and its mirror image."""
    base = drawing.checkpoints["base"]
    pictures = np.stack([to_network(scene(SIDE, SIDE)[:, ::step]) for step in (1, -1)])
    clean: Array = base.encode(pictures)[:, :4] * np.float32(base.spec.scaling_factor)
    return clean


@pytest.mark.parametrize("tile", [0, SIDE, 1024])
def test_a_tile_of_the_whole_picture_is_no_tiling(drawing: Drawing, latents: Array, tile: int) -> None:
    base, (pipeline, vae) = drawing.checkpoints["base"], tiled(drawing, tile)
    picture = to_network(scene(SIDE, SIDE))[None]
    assert np.array_equal(pipeline.decode(latents), base.decode(latents))
    assert np.array_equal(pipeline.encode(picture), base.encode(picture))
    assert [len(runner.feeds) for runner in vae.values()] == [1, 1]


def test_tiles_are_bounded_and_joined(drawing: Drawing, latents: Array) -> None:
    base, (pipeline, vae) = drawing.checkpoints["base"], tiled(drawing, 128)
    whole, joined = base.decode(latents), pipeline.decode(latents)
    picture = to_network(scene(SIDE, SIDE))[None]
    moments = pipeline.encode(picture)
    assert {feeds["latent"].shape for feeds in vae["vae_decoder"].feeds} == {(1, 4, 16, 16)}
    assert {feeds["image"].shape for feeds in vae["vae_encoder"].feeds} == {(1, 3, 128, 128)}
    assert joined.shape == whole.shape
    assert moments.shape == base.encode(picture).shape
    assert not np.array_equal(joined, whole)
    assert psnr(joined, whole) >= 22


def test_slices_are_what_all_pictures_are_together(drawing: Drawing, latents: Array) -> None:
    """One image at a time, the VAE decodes what it decodes in company."""
    base = drawing.checkpoints["base"]
    together = base.decode(latents)
    alone = np.concatenate([base.decode(latents[i : i + 1]) for i in range(len(latents))])
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert np.mean(together != alone) < 1e-3


def test_slices_of_tiling_are_exact(drawing: Drawing, latents: Array) -> None:
    runner = drawing.checkpoints["base"].runners["vae_decoder"]
    whole = Tiling((SIDE // 8, SIDE // 8), batch=1)
    sliced = tiled_decode(lambda values: runner.infer({"latent": values})["image"], latents, 8, whole)
    one_by_one = [runner.infer({"latent": latents[i : i + 1]})["image"] for i in range(len(latents))]
    assert np.array_equal(sliced, np.concatenate(one_by_one))
