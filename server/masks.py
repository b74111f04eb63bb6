"""What is repainted and what stays: masks of inpainting, (h, w) uint8, where 255 is repainted and 0 stays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageStat

from server.errors import InvalidRequest
from server.image import Pixels

Array = npt.NDArray[np.float32]

# From this grey on a pixel is repainted where a mask is hard: half of 255, rounded up.
HALF = 128
# Blurs of `fill_masked`, widest first: standard deviation in pixels, and how often it is laid on. A1111's.
FILLING = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


def prepare_mask(
    mask: Pixels, size: tuple[int, int], *, invert: bool = False, blur: float = 0, soft: bool = False
) -> Pixels:
    """The mask as it is used: checked, inverted, then blurred.

    Args:
        mask: (h, w), as `read_mask` gives it.
        size: (height, width) of the picture that it belongs to.
        blur: standard deviation in pixels of the mask, by Pillow's Gaussian blur as in diffusers; 0 is none.
        soft: whether greys will be used as they are, and not only what is on which side of the middle.

    Raises:
        InvalidRequest: of another size than the picture, or nothing or everything is to be repainted.
    """
    if mask.shape != size:
        raise InvalidRequest(
            f"mask_image has width {mask.shape[1]} and height {mask.shape[0]}, init_image width {size[1]} and height "
            f"{size[0]}; send a mask of the picture's own size"
        )
    mask = np.invert(mask) if invert else mask
    _check_both(mask, soft, "inverted, " if invert else "")
    if blur > 0:
        mask = np.array(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(blur)))
        _check_both(mask, soft, f"blurred by {blur:g} px, ")
    return mask


def _check_both(mask: Pixels, soft: bool, how: str) -> None:
    """Something is to be repainted, and something stays."""
    least, most = (1, 255) if soft else (HALF, HALF)
    if mask.max() < least:
        grey = "black" if soft else f"darker than {HALF} of 255"
        remedy = "lower mask_blur" if how.startswith("blurred") else "paint white where the picture is to change"
        raise InvalidRequest(f"mask_image is, {how}{grey} everywhere, so nothing would change; {remedy}")
    if mask.min() >= most:
        grey = "white" if soft else f"{HALF} of 255 or lighter"
        raise InvalidRequest(
            f"mask_image is, {how}{grey} everywhere, so nothing of the picture would stay; leave mask_image out for "
            "image-to-image, and init_image too for text-to-image"
        )


def binarised(mask: Pixels) -> Array:
    """(h, w) uint8 to (h, w) float32: 1 from half on, else 0, as diffusers' `do_binarize`."""
    return (mask >= HALF).astype(np.float32)


def latent_mask(mask: Pixels, height: int, width: int, *, soft: bool = False) -> Array:
    """The mask at the latent's size, (1, `height`, `width`) float32 in [0, 1].

    Args:
        mask: (h, w), of the size that is drawn.
        soft: each latent pixel the mean grey of what it covers. Otherwise 0 or 1 after the one pixel that diffusers
            takes (`F.interpolate`, nearest).
    """
    if soft:
        covered = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
        return np.clip(np.asarray(covered, np.float32) / np.float32(255), 0, 1)[None]
    rows, columns = _nearest(mask.shape[0], height), _nearest(mask.shape[1], width)
    return binarised(mask[rows][:, columns])[None]


def _nearest(length: int, wanted: int) -> npt.NDArray[np.int64]:
    """Which of `length` pixels each of the `wanted` is; torch computes it in float32."""
    places = np.arange(wanted, dtype=np.float32) * np.float32(length / wanted)
    return np.minimum(places.astype(np.int64), length - 1)


def masked_picture(picture: Array, mask: Pixels) -> Array:
    """What a 9-channel UNet is shown: (3, h, w) in [-1, 1] with 0, the middle grey, wherever (h, w) is repainted."""
    shown: Array = picture * (np.float32(1) - binarised(mask))
    return shown


def fill_masked(pixels: Pixels, mask: Pixels) -> Pixels:
    """(h, w, 3) with the colours around each hole blurred into it; `masked_content` = fill.

    Ever narrower blurs of what stays, weighted by how much of it stays, are laid over its mean colour; the last one is
    no blur, so pixels under 0 of the mask stay as they are. Where nothing stays, all is grey.

    Source: idea and widths of A1111's `modules/masking.py`, where the ground is black instead.
    """
    kept = 255 - mask
    if not kept.any():
        return np.full_like(pixels, HALF)
    red, green, blue = ImageStat.Stat(Image.fromarray(pixels), Image.fromarray(kept)).mean
    canvas = Image.new("RGBA", (mask.shape[1], mask.shape[0]), (round(red), round(green), round(blue), 255))
    weighted = Image.fromarray(np.dstack([pixels, kept])).convert("RGBa")
    for radius, times in FILLING:
        layer = weighted.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            canvas.alpha_composite(layer)
    return np.array(canvas.convert("RGB"))
