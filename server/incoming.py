"""Bytes and arrays to pixels: the pictures and masks that a client sends.

What a picture becomes: turned upright as its EXIF says; transparent pixels over white, as A1111 shows them (diffusers
would uncover whatever colour lies beneath); grey, palette and 1-bit pictures RGB; 16 bits rounded to 8 where grey, cut
to 8 where coloured; colour profiles ignored, as in diffusers. Alpha never becomes a mask.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from server.errors import InvalidRequest
from server.image import Pixels
from server.picture_files import DAMAGE, PictureLimits, check_size, damaged, open_picture

WHITE = (255, 255, 255)
# A progressive JPEG decodes all of its pixels once per scan, and a scan may be a few bytes; cameras write about ten.
MAX_SCANS = 100
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(data: bytes, limits: PictureLimits, *, field: str = "init_image") -> Pixels:
    """Decode what `check_picture` takes to (h, w, 3) uint8, upright, over white where transparent.

    Raises:
        InvalidRequest: as `check_picture`, or the file is damaged.
    """
    return np.array(_flattened(_decoded(data, limits, field)))


def read_mask(data: bytes, limits: PictureLimits, *, field: str = "mask_image") -> Pixels:
    """Decode what `check_picture` takes to the grey of a mask, (h, w) uint8, upright; white is what to repaint.

    Raises:
        InvalidRequest: as `read_picture`, or it has transparent pixels: some programs mean "repaint" by them and others
            "keep", so neither is guessed.
    """
    return _grey(_decoded(data, limits, field), field)


def picture_from_array(array: npt.NDArray[np.uint8], limits: PictureLimits, *, field: str = "init_image") -> Pixels:
    """(h, w), (h, w, 3) or (h, w, 4) uint8, grey, RGB or RGBA, to (h, w, 3); over white where transparent.

    Raises:
        InvalidRequest: another shape or type, or beyond the limits.
    """
    return np.array(_flattened(_image_of(array, limits, field)))


def mask_from_array(array: npt.NDArray[np.uint8], limits: PictureLimits, *, field: str = "mask_image") -> Pixels:
    """(h, w), (h, w, 3) or (h, w, 4) uint8 to the grey of a mask, (h, w).

    Raises:
        InvalidRequest: another shape or type, beyond the limits, or with transparent pixels.
    """
    return _grey(_image_of(array, limits, field), field)


def _decoded(data: bytes, limits: PictureLimits, field: str) -> Image.Image:
    """The picture, upright, in 8 bits; in mode RGBA if it may have transparent pixels."""
    kind, image, data = open_picture(data, limits, field)
    # In coded data 0xFF is always followed by 0x00 or a restart marker, so this finds scans and little else.
    if kind == "JPEG" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise InvalidRequest(
            f"{field} is a JPEG of {scans} scans, which takes as many times as long to decode; this server takes "
            f"{MAX_SCANS}: save it anew"
        )
    try:
        image.load()
        upright = _upright(image)
        shallow = _eight_bits(image) if image.mode == "I;16" else image
        turned = shallow if upright is None else shallow.transpose(upright)
        return turned.convert("RGBA") if turned.has_transparency_data and turned.mode != "RGBA" else turned
    except DAMAGE as error:
        raise damaged(field, kind, error) from error


def _upright(image: Image.Image) -> Image.Transpose | None:
    """As EXIF or XMP says; notes that cannot be read say nothing."""
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, its own transparent level included, which Pillow would clip at 255."""
    deep: npt.NDArray[np.uint16] = np.asarray(image)
    # value / 257, rounded.
    shallow = Image.fromarray((deep.astype(np.uint32) * 255 + 32895 >> 16).astype(np.uint8))
    level = image.info.get("transparency")
    if level is None:
        return shallow
    return Image.merge("LA", (shallow, Image.fromarray(np.where(deep == level, 0, 255).astype(np.uint8))))


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    ground = Image.new("RGB", image.size, WHITE)
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def _grey(image: Image.Image, field: str) -> Pixels:
    if image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() < 255:
        raise InvalidRequest(
            f"{field} has transparent pixels; send it without alpha: white where the picture is to be repainted, black "
            "where it stays"
        )
    return np.array(image.convert("L"))


def _image_of(array: npt.NDArray[np.uint8], limits: PictureLimits, field: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InvalidRequest(
            f"{field} is an array of {array.dtype} of shape {array.shape}; send uint8 of shape (height, width), "
            "(height, width, 3) or (height, width, 4)"
        )
    check_size(array.shape[1], array.shape[0], limits, field)
    return Image.fromarray(np.ascontiguousarray(array))
