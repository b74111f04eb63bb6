"""How like two pictures of the same seed are: drawn in different precisions, or by different providers."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass

from bench.judging.judge import Pixels
from engines.verify import psnr
from server.errors import ServerError


@dataclass(frozen=True, slots=True)
class Likeness:
    """Of one picture to another: decibels, 100 for the same pixels, and structural similarity, at most 1."""

    psnr_db: float
    ssim: float


def likeness(pictures: Iterable[Pixels], others: Iterable[Pixels]) -> list[Likeness]:
    """Picture by picture, (height, width, 3) each; SSIM as Wang et al. (2004), with a Gaussian window.

    Raises:
        ServerError: scikit-image is not installed, or two pictures differ in size.
    """
    try:
        metrics = importlib.import_module("skimage.metrics")
    except ModuleNotFoundError as error:
        raise ServerError(f"SSIM needs {error.name}: pip install 'aquatint[bench]', or `make setup`") from error
    found = []
    for one, other in zip(pictures, others, strict=True):
        if one.shape != other.shape:
            raise ServerError(
                f"pictures of {one.shape[:2]} and {other.shape[:2]} cannot be compared; give --resolution"
            )
        similarity = metrics.structural_similarity(
            one, other, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        found.append(Likeness(psnr(one, other), float(similarity)))
    return found
