"""The pictures of a request as arrays, however they came: files, base64 text, or arrays already."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from server.attachments import Picture
from server.depth import checked_depth, picture_depth
from server.errors import InvalidRequest
from server.fields import ARRAY_OF, Raster
from server.image import Pixels
from server.incoming import mask_from_array, picture_from_array, read_mask, read_picture
from server.noise import Float32Array
from server.picture_files import DAMAGE, PictureLimits, check_size, damaged, open_picture
from server.request import Request

# EXIF's orientations that swap height and width.
SIDEWAYS = (5, 6, 7, 8)


def measure(name: str, picture: Picture, limits: PictureLimits) -> tuple[int, int]:
    """(height, width) of a picture, upright, by its header; no pixel is decoded.

    Raises:
        InvalidRequest: it is none, or beyond the limits.
    """
    if isinstance(picture, Raster):
        height, width = picture.shape[:2]
        check_size(width, height, limits, ARRAY_OF[name])
        return height, width
    _, image, _ = open_picture(picture, limits, name)
    width, height = image.size
    return (width, height) if _lies_on_its_side(image) else (height, width)


def _lies_on_its_side(image: Image.Image) -> bool:
    """By the notes before the pixels; those behind them are not looked for, which would decode the picture."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return exif.get(ExifTags.Base.Orientation) in SIDEWAYS
    except DAMAGE:
        return False


def init_pixels(request: Request, limits: PictureLimits) -> Pixels:
    """`init_image`, (h, w, 3).

    Raises:
        InvalidRequest: it is damaged.
    """
    picture = cast(Picture, request.init_image)
    if isinstance(picture, bytes):
        return read_picture(picture, limits)
    return picture_from_array(_array(picture, np.uint8, "init_pixels"), limits, field="init_pixels")


def mask_pixels(request: Request, limits: PictureLimits) -> Pixels:
    """`mask_image`, (h, w).

    Raises:
        InvalidRequest: it is damaged, or has transparent pixels.
    """
    picture = cast(Picture, request.mask_image)
    if isinstance(picture, bytes):
        return read_mask(picture, limits)
    return mask_from_array(_array(picture, np.uint8, "mask_pixels"), limits, field="mask_pixels")


def depth_values(request: Request, limits: PictureLimits) -> Float32Array:
    """`depth_image`, (h, w) of any scale.

    Raises:
        InvalidRequest: it is damaged, in colour, or not finite.
    """
    picture = cast(Picture, request.depth_image)
    if isinstance(picture, Raster):
        return checked_depth(_array(picture, np.float32, "depth_map"))
    kind, image, _ = open_picture(picture, limits, "depth_image")
    try:
        return picture_depth(image)
    except DAMAGE as error:
        raise damaged("depth_image", kind, error) from error


def _array(raster: Raster, dtype: npt.DTypeLike, field: str) -> npt.NDArray[Any]:
    """Raises InvalidRequest where the bytes are not as many as the shape says."""
    shape = raster.shape[:2] if raster.shape[2:] == (1,) else raster.shape
    try:
        return np.frombuffer(raster.data, dtype).reshape(shape)
    except ValueError:
        raise InvalidRequest(
            f"{field} has {len(raster.data)} bytes and shape {list(raster.shape)}; send as many as the shape says"
        ) from None
