"""server.incoming: the same pixels whatever a picture was stored as."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from server.errors import InvalidRequest
from server.image import Pixels
from server.incoming import mask_from_array, picture_from_array, read_mask, read_picture
from server.picture_files import PictureLimits

LIMITS = PictureLimits()
ORIENTATION = 0x0112


def pixels(height: int = 24, width: int = 40) -> Pixels:
    """Smooth, with a different ramp per channel, and unlike itself when turned."""
    row, column = np.mgrid[0:height, 0:width]
    values: Pixels = np.stack([row * 10, column * 6, 255 - row * 5 - column * 3], axis=-1).astype(np.uint8)
    return values


def saved(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def read(picture: Image.Image, file_format: str = "PNG", **options: object) -> Pixels:
    return read_picture(saved(picture, file_format, **options), LIMITS)


def deep_png(values: npt.NDArray[np.uint16], colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits per channel, of one of PNG's colour types, with further chunks."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_pictures_come_as_they_are(file_format: str, options: dict[str, bool]) -> None:
    came = read(Image.fromarray(pixels()), file_format, **options)
    assert np.array_equal(came, pixels())
    assert came.dtype == np.uint8
    assert came.flags["C_CONTIGUOUS"]
    assert came.flags["WRITEABLE"]


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossy_pictures_equal_pillows(file_format: str, mode: str) -> None:
    data = saved(Image.fromarray(pixels()).convert(mode), file_format)
    assert np.array_equal(read_picture(data, LIMITS), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_turns_a_picture_upright(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(Image.fromarray(pixels()), file_format, exif=exif)
    stored = Image.open(io.BytesIO(data))
    assert stored.size == (40, 24)
    expected = ImageOps.exif_transpose(stored).convert("RGB")
    came = read_picture(data, LIMITS)
    assert np.array_equal(came, np.asarray(expected))
    assert came.shape == ((40, 24, 3) if orientation in (5, 6, 7, 8) else (24, 40, 3))


def test_exif_after_the_pixels_counts_too() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = saved(Image.fromarray(pixels()), exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert np.array_equal(read_picture(moved, LIMITS), np.rot90(pixels(), -1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exif", [b"", b"II*\0", b"\xff" * 40, b"MM\0*\0\0\0\x08\xff"])
def test_broken_exif_leaves_the_picture_as_stored(exif: bytes) -> None:
    assert read(Image.fromarray(pixels()), "JPEG", exif=b"Exif\0\0" + exif).shape == (24, 40, 3)


def test_transparent_pixels_lie_over_white() -> None:
    alpha = np.linspace(0, 255, 40).round().astype(np.uint8)[None].repeat(24, 0)
    came = read(Image.fromarray(np.dstack([pixels(), alpha])))
    share = alpha[..., None] / 255
    assert np.abs(came - (pixels() * share + 255 * (1 - share))).max() < 1
    assert (came[:, 0] == 255).all()
    assert np.array_equal(came[:, -1], pixels()[:, -1])


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_a_transparent_colour_lies_over_white(mode: str) -> None:
    black = Image.new("RGB", (8, 6))
    black.paste((255, 255, 0), (4, 0, 8, 6))
    stored = black.quantize(4) if mode == "P" else black.convert(mode, dither=Image.Dither.NONE)
    place = stored.getpixel((0, 0))
    came = read(stored, transparency=place)
    assert (came[:, :4] == 255).all()
    assert np.array_equal(came[:, 4:], np.asarray(stored.convert("RGB"))[:, 4:])


def test_a_palette_with_alpha_lies_over_white() -> None:
    stored = Image.fromarray(pixels()).quantize(8)
    alpha = bytes([0, 64, 128, 255, 255, 255, 255, 255])
    layered = np.asarray(stored.convert("RGB")) * 1.0
    share = np.array(list(alpha))[np.asarray(stored)][..., None] / 255
    assert np.abs(read(stored, transparency=alpha) - (layered * share + 255 * (1 - share))).max() < 1


def test_a_hidden_colour_stays_hidden() -> None:
    """A plain convert("RGB") would show it."""
    hidden = np.zeros((6, 8, 4), np.uint8)
    hidden[..., 0] = 200
    assert (read(Image.fromarray(hidden)) == 255).all()
    assert (read(Image.fromarray(hidden), "WEBP", lossless=True, exact=True) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    stored = Image.fromarray(pixels()).convert(mode)
    assert np.array_equal(read(stored), np.asarray(stored.convert("RGB")))


def test_deep_grey_is_rounded_and_not_clipped() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    came = read_picture(deep_png(values, 0), LIMITS)
    assert np.array_equal(came, np.rint(values / 257).astype(np.uint8)[..., None].repeat(3, -1))
    assert np.array_equal(read_mask(deep_png(values, 0), LIMITS), came[..., 0])


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_deep_colours_are_cut_to_their_high_bytes(colour: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (5, 7, channels), np.uint16)
    if channels != 3:
        values[..., -1] = 2**16 - 1
    came = read_picture(deep_png(values, colour), LIMITS)
    assert np.array_equal(
        came, (values[..., : -1 if channels != 3 else None] >> 8).astype(np.uint8) + np.zeros(3, np.uint8)
    )


def test_deep_grey_may_have_a_transparent_level() -> None:
    values = np.array([[1000, 1001, 40000]], np.uint16)
    came = read_picture(deep_png(values, 0, (b"tRNS", struct.pack(">H", 1000))), LIMITS)
    assert came[0, :, 0].tolist() == [255, 4, 156]


def test_deep_grey_is_turned_upright() -> None:
    values = np.arange(0, 60_000, 10_000, dtype=np.uint16).reshape(2, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    came = read_picture(deep_png(values, 0, (b"eXIf", exif.tobytes()[6:])), LIMITS)
    assert np.array_equal(came[..., 0], np.rot90(np.rint(values / 257), -1))


def test_colour_profiles_do_not_change_pixels() -> None:
    assert np.array_equal(read(Image.fromarray(pixels()), icc_profile=b"not a profile"), pixels())


@settings(deadline=None, database=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([None, 3, 4]), st.integers(0, 2**32 - 1))
def test_an_array_is_what_a_png_of_it_is(height: int, width: int, channels: int | None, seed: int) -> None:
    shape = (height, width) if channels is None else (height, width, channels)
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    data = saved(Image.fromarray(array))
    assert np.array_equal(picture_from_array(array, LIMITS), read_picture(data, LIMITS))
    if channels != 4:
        assert np.array_equal(mask_from_array(array, LIMITS), read_mask(data, LIMITS))


def test_an_array_that_is_a_view_is_taken_and_not_changed() -> None:
    array = pixels()[::-1, ::2]
    came = picture_from_array(array, LIMITS)
    came[:] = 0
    assert np.array_equal(array, pixels()[::-1, ::2])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4), np.bool_),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(16, np.uint8),
        np.zeros((), np.uint8),
    ],
)
def test_other_arrays_are_refused(array: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidRequest, match=r"init_image is an array of .* of shape .*; send uint8 of shape"):
        picture_from_array(array, LIMITS)
    with pytest.raises(InvalidRequest, match=r"mask_image is an array of"):
        mask_from_array(array, LIMITS)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (0, 0), (1, 8193, 3), (8193, 1), (5800, 5800)])
def test_arrays_beyond_the_limits_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match=f"width {shape[1]} and height {shape[0]}; this server reads"):
        picture_from_array(np.broadcast_to(np.uint8(0), shape), LIMITS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_mask_is_the_grey_that_diffusers_takes(mode: str) -> None:
    stored = Image.fromarray(pixels()).convert(mode)
    assert np.array_equal(read_mask(saved(stored), LIMITS), np.asarray(stored.convert("L")))


def test_a_mask_may_have_an_alpha_that_hides_nothing() -> None:
    stored = Image.fromarray(pixels()).convert("RGBA")
    assert np.array_equal(read_mask(saved(stored), LIMITS), np.asarray(stored.convert("L")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_with_transparent_pixels_is_refused(mode: str) -> None:
    stored = Image.fromarray(pixels()).convert(mode)
    alpha = Image.new("L", stored.size, 255)
    alpha.putpixel((3, 3), 254)
    stored.putalpha(alpha)
    with pytest.raises(InvalidRequest, match=r"mask_image has transparent pixels; send it without alpha: white where"):
        read_mask(saved(stored), LIMITS)
    with pytest.raises(InvalidRequest, match=r"own_name has transparent pixels"):
        mask_from_array(np.asarray(stored.convert("RGBA")), LIMITS, field="own_name")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_half_a_file_is_damaged(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(noise), file_format)
    with pytest.raises(InvalidRequest, match=r"mask_image is a damaged .* file \(.+\); see that all of it was sent"):
        read_mask(data[: len(data) // 2], LIMITS)
