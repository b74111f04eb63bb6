"""server.request_sizes: at which size a request is drawn."""

from typing import Any

import pytest

from server.attachments import Picture
from server.errors import InvalidRequest
from server.fields import Raster
from server.request import Limits, Request
from server.request_sizes import nearest_size

LIMITS = Limits(((512, 512), (768, 768), (768, 512), (512, 768)))
UPSCALER = Limits(((512, 512), (1024, 512)), task="upscaling", enlarges=4)


def sizes(name: str, picture: Picture) -> tuple[int, int]:
    assert isinstance(picture, Raster)
    return picture.shape[0], picture.shape[1]


def parse(limits: Limits, source: tuple[int, int], **fields: Any) -> Request:
    picture = Raster((*source, 3), b"")
    tensors = {"prompt": "a heart", "init_pixels": picture, **fields}
    return Request.parse({name: [value] for name, value in tensors.items()}, limits, sizes)


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((512, 512), (512, 512)),
        ((800, 800), (768, 768)),
        ((100, 100), (512, 512)),
        ((3000, 2000), (768, 512)),
        ((1080, 1920), (512, 768)),
        ((639, 640), (768, 768)),
    ],
)
def test_a_picture_is_drawn_at_the_size_nearest_to_its_own(source: tuple[int, int], size: tuple[int, int]) -> None:
    request = parse(LIMITS, source)
    assert (request.height, request.width) == size
    assert (request.source_height, request.source_width) == source


def test_a_size_that_is_asked_for_comes_first() -> None:
    request = parse(LIMITS, (800, 800), height=512, width=768)
    assert (request.height, request.width) == (512, 768)


@pytest.mark.parametrize(
    ("source", "size"), [((128, 128), (512, 512)), ((256, 128), (1024, 512)), ((90, 50), (1024, 512))]
)
def test_an_upscaler_draws_four_times_the_size(source: tuple[int, int], size: tuple[int, int]) -> None:
    request = parse(UPSCALER, source)
    assert (request.height, request.width) == size


def test_an_extended_picture_must_be_one_of_the_sizes() -> None:
    request = parse(LIMITS, (512, 512), extend_left=100, extend_right=156)
    assert (request.height, request.width) == (512, 768)
    with pytest.raises(InvalidRequest, match=r"512x512 and becomes 512x600 .* draws 512x512, 768x768"):
        parse(LIMITS, (512, 512), extend_left=88)
    with pytest.raises(InvalidRequest, match="leave both out"):
        parse(LIMITS, (512, 512), extend_left=256, height=512, width=512)


def test_of_equal_shapes_the_one_of_the_nearest_area_is_taken() -> None:
    assert nearest_size((700, 700), ((512, 512), (768, 768), (1024, 1024))) == (768, 768)
    assert nearest_size((5, 4000), ((512, 512), (512, 768))) == (512, 768)


def test_of_equally_near_sizes_the_first_is_taken() -> None:
    assert nearest_size((100, 100), ((128, 192), (192, 128))) == (128, 192)
    assert nearest_size((100, 100), ((192, 128), (128, 192))) == (192, 128)
