"""server.picture_files: what is let in is known from the header; everything else is refused with a remedy."""

import base64
import io
import itertools
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.errors import InvalidRequest
from server.incoming import read_picture
from server.picture_files import PictureHeader, PictureLimits, check_picture, file_bytes

LIMITS = PictureLimits()
FORMATS = ("PNG", "JPEG", "WebP")
ROOT = Path(__file__).resolve().parents[2]


def image(height: int = 24, width: int = 40, mode: str = "RGB") -> Image.Image:
    """Smooth, with a different ramp per channel."""
    row, column = np.mgrid[0:height, 0:width]
    ramps = np.stack([row * 10, column * 6, 255 - row * 5 - column * 3], axis=-1) % 256
    return Image.fromarray(ramps.astype(np.uint8)).convert(mode)


def saved(picture: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes = b"", *before: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of any claimed size around these compressed rows, with further chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = saved(image(), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def webp_of_size(width: int, height: int, kind: str) -> bytes:
    """A small WebP, lossy, lossless or extended, whose header claims another size."""
    if kind == "VP8X":
        data = saved(image(), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        assert data[12:16] == b"VP8X"
        return data[:24] + size + data[30:]
    data = saved(image(), "WEBP", lossless=kind == "VP8L")
    assert data[12:15] == kind[:3].encode()
    if kind == "VP8L":
        flags = int.from_bytes(data[21:25], "little") >> 28 << 28
        return data[:21] + ((width - 1) | (height - 1) << 14 | flags).to_bytes(4, "little") + data[25:]
    return data[:26] + struct.pack("<HH", width, height) + data[30:]


def animation(file_format: str) -> bytes:
    frames = [image(), image().rotate(90), image().rotate(180)]
    return saved(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100)


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("picture.png", saved(image(), "PNG"))
    return stream.getvalue()


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(("height", "width"), [(24, 40), (1, 1), (1, 300), (511, 3)])
def test_the_header_says_format_size_and_mode(file_format: str, height: int, width: int) -> None:
    data = saved(image(height, width), file_format)
    assert check_picture(data, LIMITS) == PictureHeader(file_format, width, height, "RGB")


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    "encode",
    [
        base64.b64encode,
        base64.encodebytes,
        lambda data: b"data:image/png;base64," + base64.b64encode(data),
        lambda data: b"DATA:;charset=utf-8;BASE64," + base64.encodebytes(data).replace(b"\n", b"\r\n"),
    ],
    ids=["plain", "in lines", "data URL", "odd data URL"],
)
def test_base64_text_is_taken_for_the_file(file_format: str, encode: Callable[[bytes], bytes]) -> None:
    data = saved(image(), file_format)
    assert file_bytes(encode(data), LIMITS) == data
    assert check_picture(encode(data), LIMITS) == check_picture(data, LIMITS)


@pytest.mark.parametrize("encoded", [False, True], ids=["bytes", "base64"])
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (saved(image(), "GIF"), "a GIF"),
        (saved(image(), "BMP"), "a BMP"),
        (saved(image(), "TIFF"), "a TIFF"),
        (saved(image(), "PDF"), "a PDF"),
        (saved(image(), "AVIF"), "an AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC"),
        (zipped(), "a zip archive"),
        (b'  \n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "an SVG"),
        (b"<!DOCTYPE html><title>404</title>", "HTML"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "begin with b'RIFF"),
        (b"\x89PNG\n\x1a\n" + saved(image(), "PNG")[8:], "begin with b'\\x89PNG\\n"),
        (b"\0" * 100, "100 bytes"),
        (b"\xff\xd8", "2 bytes"),
    ],
)
def test_other_files_are_named_and_refused(data: bytes, name: str, encoded: bool) -> None:
    sent = base64.b64encode(data) if encoded else data
    with pytest.raises(InvalidRequest, match="send one picture as the bytes of a PNG, JPEG or WebP") as caught:
        check_picture(sent, LIMITS, field="control_image")
    assert name in str(caught.value)
    assert str(caught.value).startswith("control_image is ")


@pytest.mark.parametrize("data", [b"", b" \n", b"data:image/png;base64,"])
def test_nothing_is_refused_as_empty(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="init_image is empty; send"):
        check_picture(data, LIMITS)


@pytest.mark.parametrize("data", [b"data:image/svg+xml,%3Csvg%3E", b"data:,hello", b"data:"])
def test_a_data_url_must_be_base64(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="without ';base64,'; encode"):
        check_picture(data, LIMITS)


@pytest.mark.parametrize(
    "text", ["/home/me/cat.png", "https://example.org/cat.png", "ein Bild", "größer", "iVBORw0KGgo"]
)
def test_text_that_is_no_picture_is_shown_as_it_came(text: str) -> None:
    with pytest.raises(InvalidRequest, match="bytes that begin with b'") as caught:
        check_picture(text.encode(), LIMITS)
    assert repr(text.encode()[:12]) in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        *(
            png(width, height)
            for width, height in [(100_000, 1), (1, 100_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)]
        ),
        *(png(width, height) for width, height in [(8193, 8), (8192, 4097)]),
        *(jpeg_of_size(width, height) for width, height in [(65_500, 1), (1, 65_500), (65_500, 65_500)]),
        *(webp_of_size(16_383, 16_383, kind) for kind in ("VP8 ", "VP8L", "VP8X")),
        webp_of_size(100_000, 1, "VP8X"),
        png(50_000, 50_000, zlib.compress(bytes(10**6)), depth=1, colour=0),
    ],
)
def test_pictures_beyond_the_limits_are_refused_by_their_header(data: bytes) -> None:
    started = time.thread_time()
    with pytest.raises(InvalidRequest, match=r"sides of 1 to 8192 and at most 33554432 pixels in all: scale"):
        check_picture(data, LIMITS)
    assert time.thread_time() - started < 0.5


@pytest.mark.parametrize("data", [png(0, 5), png(5, 0), jpeg_of_size(0, 5), webp_of_size(0, 5, "VP8 ")])
def test_a_size_of_zero_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"init_image (is a damaged|has width)"):
        check_picture(data, LIMITS)


@pytest.mark.parametrize(
    "data",
    [saved(image(), "PNG"), saved(image(), "JPEG"), *(webp_of_size(40, 24, kind) for kind in ("VP8 ", "VP8L", "VP8X"))],
    ids=["PNG", "JPEG", "VP8", "VP8L", "VP8X"],
)
def test_the_operator_sets_the_limits(data: bytes) -> None:
    for fits in (PictureLimits(max_bytes=len(data)), PictureLimits(max_side=40), PictureLimits(max_pixels=960)):
        assert check_picture(data, fits).width == 40
        assert check_picture(base64.encodebytes(data), fits).width == 40
    for tight in (PictureLimits(max_side=39), PictureLimits(max_pixels=959)):
        with pytest.raises(InvalidRequest, match="width 40 and height 24"):
            check_picture(data, tight)
    tight = PictureLimits(max_bytes=len(data) - 1)
    for sent in (data, base64.b64encode(data), base64.b64encode(data) * 9):
        with pytest.raises(InvalidRequest, match=rf"bytes; this server reads at most {len(data) - 1}: scale"):
            check_picture(sent, tight)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_animations_are_refused(file_format: str) -> None:
    with pytest.raises(InvalidRequest, match="an animation of 3 frames; send one of them"):
        check_picture(animation(file_format), LIMITS)


def test_cmyk_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"CMYK.*convert it to RGB"):
        check_picture(saved(image(mode="CMYK"), "JPEG"), LIMITS)


def test_a_photograph_of_two_pictures_is_no_animation() -> None:
    """Phones write such JPEGs, for depth or 3D."""
    first = image()
    stereo = saved(first, "MPO", save_all=True, append_images=[first.rotate(180)])
    assert getattr(Image.open(io.BytesIO(stereo)), "n_frames", 1) == 2
    assert check_picture(stereo, LIMITS) == PictureHeader("JPEG", 40, 24, "RGB")
    assert np.array_equal(read_picture(stereo, LIMITS), np.asarray(Image.open(io.BytesIO(stereo)).convert("RGB")))


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    data = saved(image(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert read_picture(data[:-2] + scan * 50 + data[-2:], LIMITS).shape == (24, 40, 3)
    with pytest.raises(InvalidRequest, match=r"a JPEG of 10.. scans"):
        read_picture(data[:-2] + scan * 1000 + data[-2:], LIMITS)


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_bomb_in_the_notes_is_refused(name: bytes) -> None:
    packed = zlib.compress(bytes(3 * 10**7), 9)
    notes = {b"iCCP": b"a\0\0" + packed, b"zTXt": b"a\0\0" + packed, b"iTXt": b"a\0\1\0\0\0" + packed}
    data = png(1, 1, zlib.compress(bytes(4)), chunk(name, notes[name]))
    with pytest.raises(InvalidRequest, match=r"a damaged PNG file .*too large"):
        check_picture(data, LIMITS)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_cut_anywhere_is_refused_or_whole(file_format: str) -> None:
    data = saved(image(), file_format)
    whole = read_picture(data, LIMITS)
    refused = 0
    for end in range(len(data)):
        try:
            assert np.array_equal(read_picture(data[:end], LIMITS), whole)
        except InvalidRequest:
            refused += 1
    # The end of a PNG, after the pixels, may be missing.
    assert refused > len(data) - 25


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_changed_anywhere_is_refused_or_read(file_format: str) -> None:
    """Whatever Pillow raises must end as InvalidRequest."""
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = ("RGB", "L") if file_format == "JPEG" else ("RGB", "RGBA", "L", "P")
    files = [saved(image(8, 9, mode), file_format, exif=exif) for mode in modes]
    for data, _ in itertools.product(files, range(400)):
        changed = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 4)):
            changed[place] = generator.integers(0, 256)
        try:
            pixels = read_picture(bytes(changed), PictureLimits(max_pixels=2**20))
        except InvalidRequest:
            continue
        assert pixels.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
def test_a_png_with_any_chunk_is_refused_or_read() -> None:
    generator = np.random.default_rng(1)
    rows = zlib.compress(b"".join(b"\0" + bytes(generator.integers(0, 256, 72, np.uint8)) for _ in range(9)))
    names = (b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"pHYs", b"cHRM", b"sRGB", b"iTXt", b"tEXt")
    for name, colour, depth, length in itertools.product(names, (0, 2, 3, 4, 6), (1, 8, 16), (0, 1, 6, 26)):
        extra = chunk(name, bytes(generator.integers(0, 256, length, np.uint8)))
        try:
            pixels = read_picture(png(9, 9, rows, extra, depth=depth, colour=colour), LIMITS)
        except InvalidRequest:
            continue
        assert pixels.shape == (9, 9, 3)


def peak_growth(*, statement: str, data: bytes, folder: Path) -> float:
    """MiB by which a process of its own grew at most while it read this file, and not while it only imported."""
    path = folder / "picture"
    path.write_bytes(data)
    program = f"""
        import pathlib, resource, sys
        from server.errors import InvalidRequest
        from server.incoming import read_picture
        from server.picture_files import PictureLimits, check_picture
        data = pathlib.Path(sys.argv[1]).read_bytes()
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before = peak()
        try:
            {statement}
        except InvalidRequest as error:
            print(error, file=sys.stderr)
        print(peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def bomb(width: int, height: int) -> bytes:
    """1-bit PNG of one colour: a thousandth of its pixels in bytes."""
    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    return png(width, height, b"".join(packer.compress(row) for _ in range(height)) + packer.flush(), depth=1, colour=0)


def test_memory_stays_as_it_was_for_a_bomb(tmp_path: Path) -> None:
    data = bomb(50_000, 50_000)
    assert len(data) < LIMITS.max_bytes
    for statement in ("check_picture(data, PictureLimits())", "read_picture(data, PictureLimits())"):
        assert peak_growth(statement=statement, data=data, folder=tmp_path) < 10


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True, "method": 0}), ("JPEG", {"progressive": True})],
    ids=["PNG", "WebP", "JPEG"],
)
def test_memory_grows_with_the_pixels_and_no_faster(
    file_format: str, options: dict[str, object], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 4, (2048, 2048, 3 if file_format == "JPEG" else 4), np.uint8)
    data = saved(Image.fromarray(pixels), file_format, **options)
    grown = peak_growth(statement="read_picture(data, PictureLimits())", data=data, folder=tmp_path)
    assert grown < 18 * 2048**2 / 2**20


def test_pillows_own_limit_is_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InvalidRequest):
        check_picture(png(50_000, 50_000), LIMITS)
    read_picture(saved(image(), "PNG"), LIMITS)
    assert before == Image.MAX_IMAGE_PIXELS == 89_478_485


@pytest.mark.parametrize("file_format", FORMATS)
def test_checking_is_quick(file_format: str) -> None:
    """The picture takes tens of milliseconds to decode."""
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    data = saved(Image.fromarray(noise), file_format)

    def seconds() -> float:
        started = time.thread_time()
        check_picture(data, LIMITS)
        return time.thread_time() - started

    assert min(seconds() for _ in range(5)) < 0.005
