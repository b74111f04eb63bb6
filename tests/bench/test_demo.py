"""The demo's pictures and figures."""

from __future__ import annotations

from PIL import Image

from bench.demo import CAPTION, DEFAULTS, GALLERY, TILE, contact_sheet
from server.request import Limits, Request


def test_gallery_requests_are_valid_and_unlike() -> None:
    limits = Limits(resolutions=((128, 128), (192, 192)))
    parsed = [Request.parse({k: [v] for k, v in {**DEFAULTS, **item}.items()}, limits) for item in GALLERY]
    assert len({request.prompt for request in parsed}) == len(GALLERY)
    assert {request.sampler for request in parsed} == {"euler", "euler_ancestral", "ddim", "dpmpp_2m"}
    assert {request.height for request in parsed} == {128, 192}


def test_contact_sheet_shows_every_picture() -> None:
    colours = ["red", "lime", "blue", "black", "cyan", "magenta"]
    sheet = contact_sheet([(f"a {name} square", Image.new("RGB", (64, 64), name)) for name in colours], columns=5)
    assert sheet.size == (5 * (TILE + 8) + 8, 2 * (TILE + CAPTION) + 8)
    for i, name in enumerate(colours):
        centre = (8 + (i % 5) * (TILE + 8) + TILE // 2, 8 + (i // 5) * (TILE + CAPTION) + TILE // 2)
        assert sheet.getpixel(centre) == Image.new("RGB", (1, 1), name).getpixel((0, 0))
