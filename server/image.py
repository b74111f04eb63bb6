"""Pixels to bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

Pixels = npt.NDArray[np.uint8]
# Of the 64 KiB of a JPEG's EXIF segment; a longer note is left out.
EXIF_ROOM = 65_000
# EXIF's code for a comment in UTF-16.
_UNICODE = b"UNICODE\0"
OPTIONS: dict[str, dict[str, Any]] = {
    # zlib's first level is several times faster than its sixth and costs a tenth in size.
    "png": {"format": "PNG", "compress_level": 1},
    "jpeg": {"format": "JPEG", "quality": 92, "subsampling": 0},
    "webp": {"format": "WEBP", "quality": 92},
}


def to_pixels(decoded: npt.NDArray[np.float32]) -> Pixels:
    """(n, 3, h, w) around [-1, 1] to (n, h, w, 3) uint8, rounded as diffusers does."""
    scaled = np.clip(decoded * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)
    return np.ascontiguousarray(scaled.round().astype(np.uint8).transpose(0, 2, 3, 1))


def encode_image(pixels: Pixels, output_format: str, encoding: str, texts: Mapping[str, str]) -> bytes:
    """(h, w, 3) uint8 to `png`, `jpeg` or `webp` bytes, or to `raw` RGB rows; base64 text on request.

    Args:
        texts: notes for the file: all of them in a PNG, the first one as the user comment of the others' EXIF.
    """
    if output_format == "raw":
        data = pixels.tobytes()
    else:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, **OPTIONS[output_format], **_notes(output_format, texts))
        data = stream.getvalue()
    return in_encoding(data, encoding)


def in_encoding(data: bytes, encoding: str) -> bytes:
    """The bytes themselves, or base64 text of them: all that JSON can carry."""
    return base64.b64encode(data) if encoding == "base64" else data


def _notes(output_format: str, texts: Mapping[str, str]) -> dict[str, Any]:
    if not texts:
        return {}
    if output_format == "png":
        info = PngInfo()
        for key, text in texts.items():
            info.add_text(key, text) if text.isascii() else info.add_itxt(key, text)
        return {"pnginfo": info}
    exif = Image.Exif()
    comment = next(iter(texts.values())).encode("utf-16be")
    if len(comment) > EXIF_ROOM:
        return {}
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _UNICODE + comment
    return {"exif": exif}
