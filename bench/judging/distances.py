"""FID and CLIP score by torchmetrics, with weights that the user has or that can be fetched.

Frechet inception distance: Heusel et al. (2017); CLIP score: Hessel et al. (2021), as MLPerf takes it: 100 times the
cosine between a picture and its caption.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.judging.judge import Pixels
from server.errors import ServerError

EXTRA = "pip install 'aquatint[fid]'"
# What MLPerf inference asks of its SDXL: 5,000 captions of COCO 2014, 20 Euler steps, guidance 8.
MLPERF_WINDOW = {"fid": (23.01085758, 23.95007626), "clip_score": (31.68631873, 31.81331801)}
# Of Inception's last features: with fewer pictures their covariance is singular, and the distance too large.
FEATURES = 2048
CLIP = "openai/clip-vit-base-patch32"
INCEPTION_REMEDY = (
    "give the network as --inception FILE: a TorchScript file that returns features, such as "
    "inception-2015-12-05.pt, or torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
)


class FrechetDistance:
    """Between the features of real pictures and those of drawn ones.

    Args:
        inception: a TorchScript network that takes uint8 (n, 3, h, w) and `return_features`, or weights (`.pth`) for
            torch-fidelity's; None lets torch-fidelity fetch its own.

    Raises:
        ServerError: a library or the network is missing.
    """

    def __init__(self, inception: Path | None) -> None:
        self._torch = _library("torch")
        kind = _library("torchmetrics.image.fid").FrechetInceptionDistance
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        try:
            if inception is not None and inception.suffix != ".pth":
                made = kind(_features(self._torch, inception))
            else:
                # As the first FID was computed, and MLPerf's.
                made = kind(feature_extractor_weights_path=inception and str(inception), antialias=False)
        except ModuleNotFoundError as error:
            raise ServerError(
                f"Inception's network comes with torch-fidelity: {EXTRA}; or {INCEPTION_REMEDY}"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ServerError(f"Inception's network cannot be loaded ({reason}); {INCEPTION_REMEDY}") from error
        self._metric = made.to(self._device)

    def add(self, pictures: Iterable[Pixels], *, real: bool) -> None:
        """Pictures (height, width, 3) of any sizes."""
        with self._torch.no_grad():
            for picture in pictures:
                batch = self._torch.from_numpy(np.array(picture.transpose(2, 0, 1))[None])
                self._metric.update(batch.to(self._device), real=real)

    def value(self) -> float:
        """0 where both sets have the same mean and covariance."""
        return float(self._metric.compute())


class CaptionScore:
    """How near pictures are to their captions, by a CLIP of two encoders.

    Args:
        clip: a folder as transformers saves it, or a name on the hub.

    Raises:
        ServerError: a library or the checkpoint is missing.
    """

    def __init__(self, clip: str) -> None:
        torch, transformers = _library("torch"), _library("transformers")
        score = _library("torchmetrics.multimodal.clip_score").CLIPScore
        try:
            encoders = transformers.CLIPModel.from_pretrained(clip).eval()
            # Resizes as the published one does, and needs no torchvision.
            images = transformers.CLIPImageProcessorPil.from_pretrained(clip)
            processor = transformers.CLIPProcessor(images, transformers.CLIPTokenizer.from_pretrained(clip))
        except (OSError, ValueError, RuntimeError) as error:
            raise ServerError(
                f"--clip {clip} cannot be loaded ({str(error).strip().splitlines()[0]}); give a folder that has "
                f"CLIP with its tokenizer and preprocessor, such as a copy of {CLIP}"
            ) from error
        self._torch = torch
        self._metric = score(lambda: (_Encoders(encoders), processor))
        self._metric.to("cuda" if torch.cuda.is_available() else "cpu")

    def value(self, pictures: Iterable[Pixels], captions: Iterable[str]) -> float:
        """The mean over pictures (height, width, 3) and their captions; longer ones are cut."""
        with self._torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Encountered caption longer")
            for picture, caption in zip(pictures, captions, strict=True):
                image = self._torch.from_numpy(np.array(picture.transpose(2, 0, 1)))
                self._metric.update(image.to(self._metric.device), caption)
        return float(self._metric.compute())


class _Encoders:
    """CLIP as torchmetrics calls it: transformers 5 gives outputs where it expects vectors."""

    def __init__(self, encoders: Any) -> None:
        self._encoders = encoders
        self.config = encoders.config

    def to(self, device: Any) -> _Encoders:
        self._encoders.to(device)
        return self

    def get_image_features(self, pixels: Any) -> Any:
        return _vector(self._encoders.get_image_features(pixels))

    def get_text_features(self, ids: Any, mask: Any) -> Any:
        return _vector(self._encoders.get_text_features(ids, mask))


def _vector(output: Any) -> Any:
    return getattr(output, "pooler_output", output)


def _features(torch: Any, path: Path) -> Any:
    """A TorchScript file as a network of one argument."""
    network = torch.jit.load(str(path), map_location="cpu").eval()

    class Features(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pictures: Any) -> Any:
            return self.network(pictures, return_features=True)

    return Features()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ServerError(f"FID and CLIP score need {error.name}: {EXTRA}") from error
