"""The variants of the embedded checkpoint, and exports of them for small pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engines.component import PIPELINE_FILE, PipelineSpec
from export.export import Options
from tests.exports import export_once

EMBEDDED = Path(__file__).resolve().parent.parent / "export" / "embedded" / "checkpoint"
VARIANTS = {"inpainting": "inpainting", "depth": "depth", "upscaling": "upscaler"}
# Sides in pixels that `make export` exports them for.
EXPORTED = {"inpainting": (128, 192), "depth": (128, 192), "upscaling": (128, 192, 512)}
# (height, width) that are drawn here: quick ones, and one whose sides are told apart; an upscaler takes a quarter.
SIZES = {
    "inpainting": ((64, 64), (128, 128), (64, 128)),
    "depth": ((64, 64), (128, 128), (64, 128)),
    "upscaling": ((128, 128), (256, 256), (128, 256)),
}


def variant(task: str) -> Path:
    """The checkpoint of a task."""
    return EMBEDDED.with_name(f"{EMBEDDED.name}-{VARIANTS[task]}")


def export_variant(task: str, root: Path, embedded: Path, made: Path) -> tuple[Path, Path]:
    """The checkpoint of a task, and an export of it that takes pictures of `SIZES`.

    Args:
        root: where exports are kept; what is up to date there is not made again.
        embedded: the export of the embedded checkpoint, whose networks its variants share.
        made: a folder for an export that differs in nothing but the sizes.
    """
    checkpoint, folder = variant(task), root / VARIANTS[task]
    sides = [(side, side) for side in EXPORTED[task]]
    export_once(checkpoint, folder, Options(sides, reuse=(embedded,)))
    return checkpoint, sized(folder, SIZES[task], made)


def sized(folder: Path, sizes: tuple[tuple[int, int], ...], made: Path) -> Path:
    """An export for other resolutions; graphs take any."""
    for path in folder.iterdir():
        if path.name != PIPELINE_FILE and not path.name.startswith("."):
            (made / path.name).symlink_to(path)
    replace(PipelineSpec.read(folder), resolutions=sizes).write(made)
    return made
