"""Files of pictures as clients send them: told apart, held to the operator's limits, opened as far as the header."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from server.errors import InvalidRequest

SEND = "send one picture as the bytes of a PNG, JPEG or WebP file, or base64 text of them"
# Opened without `Image.open`, which warns of large pictures and takes a stereo photograph for an animation.
READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
}
# What the readers raise for a damaged file, in opening or in decoding.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
# How files begin that are sent by mistake, and where.
OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"<", "an SVG, XML or HTML text"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyp", "a HEIC picture or a film"),
)


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What the operator lets in; decoding takes up to 16 bytes of memory per pixel.

    Attributes:
        max_bytes: of the file; its base64 text may be half as long again.
        max_side: pixels of the longer side.
        max_pixels: width times height.
    """

    max_bytes: int = 20_000_000
    max_side: int = 8192
    max_pixels: int = 2**25


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """What a file says of itself: its format, its size in pixels as stored (not yet upright) and Pillow's mode."""

    format: str
    width: int
    height: int
    mode: str


def check_picture(data: bytes, limits: PictureLimits, *, field: str = "init_image") -> PictureHeader:
    """Read the header only: quick enough for the edge, and no pixel is decoded.

    Args:
        data: a PNG, JPEG or WebP file, or base64 text of one, plain or as a `data:` URL.

    Raises:
        InvalidRequest: not such a picture, animated, CMYK, or beyond the limits. A file that is cut off later than its
            header is found by `read_picture` alone.
    """
    kind, image, _ = open_picture(data, limits, field)
    return PictureHeader(kind, *image.size, image.mode)


def file_bytes(data: bytes, limits: PictureLimits, *, field: str = "init_image") -> bytes:
    """The file itself, decoded where it came as base64 text.

    Raises:
        InvalidRequest: empty, longer than the limit, or neither a picture that is read nor base64.
    """
    if _kind(data) is None and len(data) <= limits.max_bytes * 3 // 2:
        data = _from_base64(data, field)
    if not data:
        raise InvalidRequest(f"{field} is empty; {SEND}")
    if len(data) > limits.max_bytes:
        raise InvalidRequest(
            f"{field} is {len(data)} bytes; this server reads at most {limits.max_bytes}: scale the picture down, or "
            "send it as JPEG or WebP"
        )
    return data


def _from_base64(data: bytes, field: str) -> bytes:
    text = data
    if data[:5].lower() == b"data:":
        head, _, text = data.partition(b",")
        if not head.lower().endswith(b";base64"):
            raise InvalidRequest(f"{field} is a data: URL without ';base64,'; encode the file as base64")
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise InvalidRequest(f"{field} is {_described(data)}; {SEND}") from None


def _kind(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WebP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _described(data: bytes) -> str:
    """What unreadable bytes seem to be, for the one who sent them."""
    start = data[:64].lstrip()
    for offset, signature, name in OTHERS:
        if start[offset:].startswith(signature):
            return name
    return f"{len(data)} bytes that begin with {data[:12]!r}, no picture that this server knows"


def open_picture(data: bytes, limits: PictureLimits, field: str) -> tuple[str, ImageFile.ImageFile, bytes]:
    """Format, picture with nothing but its header read, and the file; raises as `check_picture` does."""
    data = file_bytes(data, limits, field=field)
    kind = _kind(data)
    if kind is None:
        raise InvalidRequest(f"{field} is {_described(data)}; {SEND}")
    if kind == "WebP" and (size := _webp_size(data)):
        # Its reader takes memory for the whole canvas when it opens.
        check_size(*size, limits, field)
    try:
        image = READERS[kind](io.BytesIO(data))
    except DAMAGE as error:
        raise damaged(field, kind, error) from error
    check_size(*image.size, limits, field)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise InvalidRequest(f"{field} is an animation of {frames} frames; send one of them as a picture of its own")
    if image.mode == "CMYK":
        raise InvalidRequest(
            f"{field} is in CMYK, whose colours depend on a printing press; convert it to RGB where it was made"
        )
    return kind, image, data


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the canvas, RFC 9649 sections 2.5 to 2.7; None where the header is broken."""
    chunk, rest = data[12:16], data[20:30]
    if chunk == b"VP8 " and len(rest) == 10:
        width, height = struct.unpack("<HH", rest[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8X" and len(rest) == 10:
        return int.from_bytes(rest[4:7], "little") + 1, int.from_bytes(rest[7:10], "little") + 1
    if chunk == b"VP8L" and len(rest) >= 5:
        bits = int.from_bytes(rest[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def check_size(width: int, height: int, limits: PictureLimits, field: str) -> None:
    """Raises InvalidRequest unless a picture of this size, in pixels, is let in."""
    if min(width, height) < 1 or max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise InvalidRequest(
            f"{field} has width {width} and height {height}; this server reads sides of 1 to {limits.max_side} and at "
            f"most {limits.max_pixels} pixels in all: scale the picture to about the size that you want drawn"
        )


def damaged(field: str, kind: str, error: BaseException) -> InvalidRequest:
    """The answer to a file that its reader stumbled over."""
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return InvalidRequest(f"{field} is a damaged {kind} file ({reason}); see that all of it was sent, or save it anew")
