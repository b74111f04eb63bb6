"""FID and CLIP score on networks whose answers are known."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.linalg import sqrtm

from bench.judging.distances import CaptionScore, FrechetDistance
from bench.judging.judge import Pixels
from server.errors import ServerError
from tests.conftest import EMBEDDED

SIDE = 32


class Means(torch.nn.Module):
    """Features that can be told from a picture: the mean of each channel."""

    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return pictures.float().mean(dim=[2, 3])


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    torch.jit.save(torch.jit.script(Means()), tmp_path / "means.pt")
    return tmp_path / "means.pt"


def plain(colours: npt.NDArray[np.float64]) -> list[Pixels]:
    """Pictures of one colour each, (n, 3), of two sizes."""
    whole = colours.round().clip(0, 255).astype(np.uint8)
    return [np.broadcast_to(colour, (8 + i % 2, 8, 3)).copy() for i, colour in enumerate(whole)]


def test_fid_is_the_distance_of_two_normal_distributions(inception: Path) -> None:
    random = np.random.default_rng(5)
    real = random.multivariate_normal([90, 120, 150], [[300, 100, 0], [100, 200, 50], [0, 50, 250]], 60)
    drawn = random.multivariate_normal([110, 110, 140], [[150, 0, 0], [0, 400, -80], [0, -80, 200]], 40)
    distance = FrechetDistance(inception)
    distance.add(plain(real), real=True)
    distance.add(plain(drawn), real=False)
    one, other = (np.array([picture[0, 0] for picture in plain(some)], np.float64) for some in (real, drawn))
    a, b = np.cov(one.T), np.cov(other.T)
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert expected > 100
    assert distance.value() == pytest.approx(expected, rel=1e-5)


def test_the_same_pictures_are_at_no_distance(inception: Path) -> None:
    colours = np.random.default_rng(6).uniform(0, 255, (20, 3))
    distance = FrechetDistance(inception)
    for real in (True, False):
        distance.add(plain(colours), real=real)
    assert distance.value() == pytest.approx(0, abs=1e-3)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    for name in ("weights.pt", "none.pt"):
        with pytest.raises(ServerError, match=r"cannot be loaded .*--inception FILE"):
            FrechetDistance(tmp_path / name)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it, of random weights."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    tokenizer.save_pretrained(folder)
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **small}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = CLIPConfig(
            text_config=words, vision_config={"image_size": SIDE, "patch_size": 8, **small}, projection_dim=16
        )
        CLIPModel(config).save_pretrained(folder)
    sizes = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=sizes).save_pretrained(folder)
    return folder


def test_clip_score_is_a_hundred_times_the_mean_cosine(clip: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    pictures = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (30, 220)]
    pictures[0][: SIDE // 2] = 250
    captions = ["a red circle on a blue background", "a white star"]
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        cosines = [
            torch.cosine_similarity(seen.image_embeds, seen.text_embeds).item()
            for picture, caption in zip(pixels, captions, strict=True)
            for seen in [model(pixel_values=picture[None], **tokenizer(caption, return_tensors="pt"))]
        ]
    expected = max(0.0, 100 * float(np.mean(cosines)))
    assert CaptionScore(str(clip)).value(pictures, captions) == pytest.approx(expected, abs=1e-3)
    assert expected > 0
    assert abs(cosines[0] - cosines[1]) > 1e-3


def test_a_clip_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"--clip .*cannot be loaded .*give a folder"):
        CaptionScore(str(tmp_path))


@pytest.mark.parametrize("made", [lambda: FrechetDistance(None), lambda: CaptionScore("none")])
def test_without_the_libraries_their_extra_is_named(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("none", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ServerError, match=r"aquatint\[fid\]"):
        made()
