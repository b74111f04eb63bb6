"""The pictures that come with a request, as it carries them: files or arrays, not yet read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from server.errors import InvalidRequest
from server.fields import ARRAY_OF, Raster
from server.request_sizes import check_same_size

# Bytes of an image file, or an array.
Picture: TypeAlias = "bytes | Raster"
# (height, width) in pixels of a picture, by its header; raises InvalidRequest where it is none.
Measure: TypeAlias = Callable[[str, Picture], tuple[int, int]]


def attached(values: dict[str, object]) -> dict[str, object]:
    """The pictures under one name each, however they came; their arrays' names are taken out."""
    found = {}
    for name, array in ARRAY_OF.items():
        file, pixels = values[name], values.pop(array)
        if file is not None and pixels is not None:
            raise InvalidRequest(f"both {name} and {array} came; send one of them")
        found[name] = pixels if file is None else file
    return found


def source_size(values: Mapping[str, object], measure: Measure | None) -> tuple[int, int]:
    """The size of `init_image`, (0, 0) without one; looks at the headers of all pictures.

    Raises:
        InvalidRequest: one is none, or the mask has another size.
    """
    sizes = {}
    for name in ARRAY_OF:
        picture = cast("Picture | None", values[name])
        if picture is not None:
            if measure is None:
                raise InvalidRequest(f"{name} came, but this server reads no pictures; leave it out")
            sizes[name] = measure(name, picture)
    check_same_size(sizes)
    return sizes.get("init_image", (0, 0))


def described(picture: Picture) -> dict[str, Any]:
    data = picture.data if isinstance(picture, Raster) else picture
    return {"bytes": length(picture), "sha256": hashlib.sha256(data).hexdigest()}


def length(picture: Picture) -> int:
    return len(picture.data if isinstance(picture, Raster) else picture)
