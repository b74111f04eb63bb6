"""The shapes that a component is compiled for: how few, how many and mostly how many rows, at one resolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from math import prod
from typing import TypeAlias

from engines.catalog import SIDE_MULTIPLE
from engines.component import Component, PipelineSpec, TensorSpec, resolve, scaled_symbol
from engines.errors import BuildError

SIDES = ("height", "width")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The fewest, the usual and the most of something.

    Raises:
        BuildError: they do not rise, or begin below 1.
    """

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise BuildError(f"{self} does not rise from 1 or more; write minimum:optimum:maximum, such as 1:8:16")

    def __str__(self) -> str:
        return ":".join(map(str, astuple(self)))

    def at_most(self, limit: int) -> Bounds:
        """The same, cut off at `limit`, which is no less than the minimum."""
        return Bounds(self.minimum, min(self.optimum, limit), min(self.maximum, limit))


Rows: TypeAlias = Bounds
Tokens: TypeAlias = Bounds

# Of one prompt. More than it has chunks no server sends, and none has fewer tokens than one.
MAX_CHUNKS = 8
CHUNK_TOKENS = 77
TOKENS = Tokens(CHUNK_TOKENS, CHUNK_TOKENS, MAX_CHUNKS * CHUNK_TOKENS)
# Networks that run at every step see many rows, the others a picture or a few.
EVERY_STEP = ("unet", "controlnet")
EVERY_STEP_ROWS = Rows(1, 8, 16)
ONCE_ROWS = Rows(1, 2, 8)


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The smallest, usual and largest shape of one input."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __str__(self) -> str:
        smallest, usual, largest = ("x".join(map(str, shape)) for shape in astuple(self))
        return f"{smallest} to {largest}, best at {usual}"


Profile: TypeAlias = Mapping[str, ShapeRange]


def default_rows(name: str) -> Rows:
    """The rows of a component for which nothing was asked."""
    return EVERY_STEP_ROWS if name in EVERY_STEP else ONCE_ROWS


def symbols(component: Component) -> set[str]:
    """The names of the sizes that a component's inputs leave open."""
    return {scaled_symbol(dim)[1] for spec in component.inputs for dim in spec.shape if isinstance(dim, str)}


def depends_on_resolution(component: Component) -> bool:
    """Whether another resolution means other shapes; a text encoder's are always the same."""
    return bool(symbols(component) & set(SIDES))


def compiled_resolutions(component: Component, spec: PipelineSpec) -> tuple[tuple[int, int], ...]:
    """Those of an export that a component is compiled for one by one; the first where they make no difference."""
    return spec.resolutions if depends_on_resolution(component) else spec.resolutions[:1]


def reach(profile: Profile) -> tuple[int, int]:
    """The most rows of a profile and then the most values: of two, the larger one takes more."""
    largest = [shapes.maximum for shapes in profile.values()]
    return max(shape[0] for shape in largest), sum(map(prod, largest))


def common_sizes(component: Component, profiles: Iterable[Profile]) -> dict[str, tuple[int, int]]:
    """The fewest and the most rows, and tokens, that all of some profiles of a component take; none without any."""
    found: dict[str, tuple[int, int]] = {}
    for profile in profiles:
        for spec in component.inputs:
            shapes = profile[spec.name]
            for dim, least, most in zip(spec.shape, shapes.minimum, shapes.maximum, strict=True):
                if dim in ("rows", "tokens"):
                    before = found.get(str(dim), (least, most))
                    found[str(dim)] = max(before[0], least), min(before[1], most)
    return found


def latent_sides(resolution: tuple[int, int], downscale: int) -> tuple[int, int]:
    """(height, width) of the latent of a picture of (height, width) pixels.

    Raises:
        BuildError: a side is no multiple of what the VAE and the UNet halve.
    """
    multiple = SIDE_MULTIPLE * downscale
    if min(resolution) < multiple or any(side % multiple for side in resolution):
        height, width = resolution
        raise BuildError(f"resolution {height}x{width} does not fit: both sides must be multiples of {multiple} pixels")
    return resolution[0] // downscale, resolution[1] // downscale


def component_profile(
    component: Component, latent: tuple[int, int], rows: Rows, tokens: Tokens = TOKENS
) -> dict[str, ShapeRange]:
    """The shapes of every input; height and width are fixed, rows and tokens vary.

    Args:
        latent: its (height, width).

    Raises:
        BuildError: an input has a size that is none of these.
    """
    if unknown := symbols(component) - {"rows", "tokens", *SIDES}:
        raise BuildError(f"{component.name} has inputs of unknown size {sorted(unknown)}; export it again")
    sizes = [
        {"rows": rows_, "tokens": tokens_, "height": latent[0], "width": latent[1]}
        for rows_, tokens_ in zip(astuple(rows), astuple(tokens), strict=True)
    ]

    def shapes(spec: TensorSpec) -> ShapeRange:
        return ShapeRange(*(tuple(resolve(dim, bound) for dim in spec.shape) for bound in sizes))

    return {spec.name: shapes(spec) for spec in component.inputs}
