"""At which size a request is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from server.errors import InvalidRequest

if TYPE_CHECKING:
    from server.request import Limits

Size = tuple[int, int]
# Of Stable Diffusion's upscaler.
UPSCALING = 4


def fitting_size(values: Mapping[str, object], task: str, source: Size, limits: Limits) -> Size:
    """(height, width) in pixels of what is drawn.

    The picture that comes decides where the request says neither: extended, it must be one of the server's sizes;
    otherwise the size nearest to its own shape is taken, and the picture is resized.

    Args:
        source: (height, width) of `init_image`; (0, 0) without one.

    Raises:
        InvalidRequest: the server does not draw that size.
    """
    height, width = values["height"], values["width"]
    if task == "outpainting":
        return _extended(values, source, limits)
    if source != (0, 0) and height is None and width is None:
        return nearest_size((limits.enlarges * source[0], limits.enlarges * source[1]), limits.resolutions)
    fitting = [(h, w) for h, w in limits.resolutions if height in (None, h) and width in (None, w)]
    if not fitting:
        raise InvalidRequest(
            f"height x width is {height or 'default'}x{width or 'default'}; this server draws {_listed(limits)}: "
            "send one of these, or export the checkpoint with a further --resolution"
        )
    return fitting[0]


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of the most similar shape; of those the one of the most similar area."""

    def distance(other: Size) -> tuple[float, float]:
        shape = math.log(other[0] / other[1]) - math.log(size[0] / size[1])
        area = math.log(other[0] * other[1]) - math.log(size[0] * size[1])
        return round(abs(shape), 6), abs(area)

    return min(sizes, key=distance)


def _extended(values: Mapping[str, object], source: Size, limits: Limits) -> Size:
    top, bottom, left, right = (cast(int, values[f"extend_{side}"]) for side in ("top", "bottom", "left", "right"))
    height, width = source[0] + top + bottom, source[1] + left + right
    if (height, width) not in limits.resolutions:
        raise InvalidRequest(
            f"init_image is {source[0]}x{source[1]} and becomes {height}x{width} with what extends it; this server "
            f"draws {_listed(limits)}: extend by other numbers of pixels, or export a further --resolution"
        )
    if values["height"] not in (None, height) or values["width"] not in (None, width):
        raise InvalidRequest(
            f"height x width is {values['height']}x{values['width']}, but the extended picture is {height}x{width}; "
            "leave both out"
        )
    return height, width


def check_same_size(sizes: Mapping[str, Size]) -> None:
    """A mask belongs to its picture, pixel by pixel.

    Raises:
        InvalidRequest: their sizes differ.
    """
    if "mask_image" in sizes and "init_image" in sizes and sizes["mask_image"] != sizes["init_image"]:
        (height, width), (other_height, other_width) = sizes["mask_image"], sizes["init_image"]
        raise InvalidRequest(
            f"mask_image is {height}x{width} and init_image {other_height}x{other_width} (height x width); send a mask "
            "of the picture's size"
        )


def _listed(limits: Limits) -> str:
    return ", ".join(f"{h}x{w}" for h, w in limits.resolutions)
