"""The pictures of a request, read, brought to size and encoded: how its images begin, and how they are finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from server.beginnings import Begin, FromPicture, Inpainting, Upscaling, WithDepth, from_noise
from server.depth import depth_channel
from server.errors import ServerError
from server.fields import Fill, ResizeMode
from server.image import Pixels
from server.masks import fill_masked, latent_mask, masked_picture, prepare_mask
from server.only_masked import Box, crop_region, cut_out, paste_back, whole_box
from server.outpainting import Extension, extend
from server.picture_files import PictureLimits
from server.pipeline import Pipeline
from server.request import Request
from server.request_pictures import depth_values, init_pixels, mask_pixels
from server.request_sizes import UPSCALING
from server.resizing import resize, to_network

Array: TypeAlias = npt.NDArray[np.float32]
Finish: TypeAlias = Callable[[Pixels], Pixels]


@dataclass(frozen=True, slots=True)
class Source:
    """How the images of a request begin, and what is done to their pixels in the end.

    Attributes:
        draws: that their first latent takes.
    """

    begin: Begin
    finish: Finish | None = None
    draws: int = 1


@dataclass(frozen=True, slots=True)
class Canvas:
    """What is repainted.

    Attributes:
        pixels: (h, w, 3) of the size that is drawn.
        mask: (h, w) of the size that is drawn, 255 where it is repainted.
        original: what the result is pasted into.
        original_mask: of its size.
        box: the part of it that is drawn.
    """

    pixels: Pixels
    mask: Pixels
    original: Pixels
    original_mask: Pixels
    box: Box


def open_source(request: Request, pipeline: Pipeline, limits: PictureLimits) -> Source:
    """Read and encode what came with a request.

    Raises:
        InvalidRequest: a picture is damaged, or a mask masks nothing or all.
    """
    if request.task == "upscaling":
        return Source(upscaling(init_pixels(request, limits), request, pipeline), draws=2)
    if request.task in ("inpainting", "outpainting"):
        return _repainted(request, pipeline, limits)
    pixels = None
    if request.init_image is not None:
        picture = init_pixels(request, limits)
        pixels = resize(picture, request.height, request.width, mode=_mode(request))
    if request.task == "depth_to_image":
        begin = from_noise if pixels is None else from_pixels(pixels, pipeline)
        return Source(WithDepth(begin, _depth(request, pixels, pipeline, limits)), draws=1 if pixels is None else 2)
    if pipeline.extra_channels:
        unmasked = _unmasked(request, pixels, pipeline)
        return Source(unmasked, draws=unmasked.draws)
    return Source(from_noise) if pixels is None else Source(from_pixels(pixels, pipeline), draws=2)


def from_pixels(pixels: Pixels, pipeline: Pipeline) -> FromPicture:
    """Image-to-image from (h, w, 3) of the size that is drawn."""
    return FromPicture(_moments(to_network(pixels), pipeline), pipeline.spec.scaling_factor)


def upscaling(pixels: Pixels, request: Request, pipeline: Pipeline) -> Upscaling:
    """The x4 upscaler on a picture (h, w, 3), resized where it is not a quarter of what is drawn."""
    if pipeline.low_resolution is None:
        raise ServerError(f"model {pipeline.name!r} is no upscaler")
    height, width = request.height // UPSCALING, request.width // UPSCALING
    if pixels.shape[:2] != (height, width):
        pixels = resize(pixels, height, width, mode=_mode(request))
    return Upscaling(to_network(pixels), request.noise_level, pipeline.low_resolution)


def _mode(request: Request) -> ResizeMode:
    return cast(ResizeMode, request.resize_mode)


def _moments(picture: Array, pipeline: Pipeline) -> Array:
    moments: Array = pipeline.encode(picture[None])[0]
    return moments


def _depth(request: Request, pixels: Pixels | None, pipeline: Pipeline, limits: PictureLimits) -> Array:
    """(1, h, w) at the latent's size."""
    size = pipeline.latent_shape(request.height, request.width)[1:]
    if request.depth_image is not None:
        depth = depth_values(request, limits)
    else:
        assert pixels is not None
        depth = pipeline.estimate_depth(pixels)
    return depth_channel(depth, size, invert=bool(request.depth_invert))


def _unmasked(request: Request, pixels: Pixels | None, pipeline: Pipeline) -> Inpainting:
    """A UNet that takes a mask and is asked for a whole picture: all of it is masked."""
    _, height, width = pipeline.latent_shape(request.height, request.width)
    grey = np.zeros((3, request.height, request.width), np.float32)
    return Inpainting(
        mask=np.ones((1, height, width), np.float32),
        strength=1.0 if request.strength is None else request.strength,
        content="original",
        moments=None if pixels is None else _moments(to_network(pixels), pipeline),
        masked=_moments(grey, pipeline),
        scaling_factor=pipeline.spec.scaling_factor,
    )


def _repainted(request: Request, pipeline: Pipeline, limits: PictureLimits) -> Source:
    canvas = _extended(request, limits) if request.task == "outpainting" else _masked(request, limits)
    masks = pipeline.extra_channels > 0
    _, height, width = pipeline.latent_shape(request.height, request.width)
    strength = 1.0 if request.strength is None else request.strength
    filled = fill_masked(canvas.pixels, canvas.mask) if request.masked_content == "fill" else canvas.pixels
    shown = masked_picture(to_network(canvas.pixels), canvas.mask)
    begin = Inpainting(
        mask=latent_mask(canvas.mask, height, width, soft=bool(request.soft_mask) and not masks),
        strength=strength,
        content=request.masked_content,
        moments=None if masks and strength >= 1 else _moments(to_network(filled), pipeline),
        masked=_moments(shown, pipeline) if masks else None,
        scaling_factor=pipeline.spec.scaling_factor,
    )
    finish = partial(_pasted, canvas) if request.only_masked or request.keep_unmasked else None
    return Source(begin, finish, begin.draws)


def _pasted(canvas: Canvas, drawn: Pixels) -> Pixels:
    return paste_back(canvas.original, drawn, canvas.box, canvas.original_mask)


def _extended(request: Request, limits: PictureLimits) -> Canvas:
    sides = Extension(request.extend_left, request.extend_right, request.extend_top, request.extend_bottom)
    picture = init_pixels(request, limits)
    pixels, mask = extend(
        picture, sides, limits, fill=cast(Fill, request.extend_fill), feather=request.feather, seed=request.seed
    )
    return Canvas(pixels, mask, pixels, mask, whole_box(pixels))


def _masked(request: Request, limits: PictureLimits) -> Canvas:
    picture = init_pixels(request, limits)
    mask = prepare_mask(
        mask_pixels(request, limits),
        (picture.shape[0], picture.shape[1]),
        invert=bool(request.mask_invert),
        blur=request.mask_blur,
        soft=bool(request.soft_mask),
    )
    height, width = request.height, request.width
    if request.only_masked:
        box = crop_region(mask, request.only_masked_padding, height, width)
        return Canvas(cut_out(picture, box, height, width), cut_out(mask, box, height, width), picture, mask, box)
    pixels = resize(picture, height, width, mode=_mode(request))
    resized = resize(mask, height, width, mode=_mode(request))
    return Canvas(pixels, resized, pixels, resized, whole_box(pixels))
