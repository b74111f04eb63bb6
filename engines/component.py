"""What a component is, and `pipeline.json`: everything that a server needs to know about an exported checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.errors import ArtefactError, FeedError

Dim: TypeAlias = int | str
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
Family: TypeAlias = Literal["sd1", "sd2", "x4", "sdxl", "sdxl_refiner", "controlnet"]
Task: TypeAlias = Literal["text_to_image", "inpainting", "depth", "upscaling", "refining", "control"]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]

PIPELINE_FILE = "pipeline.json"
FORMAT = 5


def scaled_symbol(dim: str) -> tuple[Fraction, str]:
    """A symbolic size as factor and symbol: `8*height` is (8, "height"), `height/2` is (1/2, "height")."""
    factor, _, symbol = dim.rpartition("*")
    symbol, _, divisor = symbol.partition("/")
    return Fraction(int(factor or 1), int(divisor or 1)), symbol


def resolve(dim: Dim, bound: Mapping[str, int]) -> int:
    """The size of `dim`: a number, a symbol such as `rows`, a multiple such as `8*height` or a part such as `height/2`.

    Raises:
        KeyError: the symbol has no size yet.
    """
    if isinstance(dim, int):
        return dim
    factor, symbol = scaled_symbol(dim)
    return int(factor * bound[symbol])


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one input or output; a symbolic size is a string."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def bind(self, array: npt.NDArray[Any], bound: dict[str, int]) -> None:
        """Check `array` against this input and note the sizes of its symbols in `bound`.

        Raises:
            FeedError: another dtype, another rank, or a size that contradicts the spec or an earlier input.
        """
        if array.dtype != self.dtype or array.ndim != len(self.shape):
            raise FeedError(
                f"input {self.name!r} is {array.dtype}{list(array.shape)}; feed {self.dtype}{list(self.shape)} instead"
            )
        for dim, size in zip(self.shape, array.shape, strict=True):
            if isinstance(dim, str):
                factor, symbol = scaled_symbol(dim)
                bound.setdefault(symbol, int(size / factor))
            if resolve(dim, bound) != size:
                raise FeedError(
                    f"input {self.name!r} has shape {list(array.shape)}; its dimension {dim!r} must be "
                    f"{resolve(dim, bound)} here (the component takes {list(self.shape)})"
                )


@dataclass(frozen=True, slots=True)
class Component:
    """One network of a checkpoint: its exported file and its tensors.

    Attributes:
        parity: what export measured against torch: the largest and the mean absolute difference.
        source: SHA-256 over all that went into the file; empty where that is not known of it alone.
    """

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision = "fp32"
    sha256: str = ""
    parity: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def is_intact(self, folder: Path) -> bool:
        """Whether its file in an export folder is as it was exported."""
        path = folder / self.file
        return path.is_file() and file_sha256(path) == self.sha256

    def bind(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
        """Check feeds against the inputs; returns the size of every symbol.

        Raises:
            FeedError: an input is missing, unknown, or of another dtype or shape.
        """
        names = {spec.name for spec in self.inputs}
        if set(feeds) != names:
            raise FeedError(f"{self.name} was fed {sorted(feeds)}; feed exactly {sorted(names)}")
        bound: dict[str, int] = {}
        for spec in self.inputs:
            spec.bind(feeds[spec.name], bound)
        return bound

    def size(self, folder: Path) -> int:
        """Bytes of its exported file, and of its external data, in an export folder; 0 where there is none."""
        return sum(part.stat().st_size for part in parts(folder / self.file) if part.is_file())

    def zeros(self, sizes: Mapping[str, int]) -> dict[str, npt.NDArray[Any]]:
        """Feeds of nothing, for a first call.

        Args:
            sizes: of every symbol.
        """
        shapes = {spec: tuple(resolve(dim, sizes) for dim in spec.shape) for spec in self.inputs}
        return {spec.name: np.zeros(shape, spec.dtype) for spec, shape in shapes.items()}


@dataclass(frozen=True, slots=True)
class Projection:
    """Roughly the colours of a latent: (red, green, blue) = latent @ matrix + bias, around [-1, 1] as decoded pixels.

    Attributes:
        matrix: (latent channels, 3); takes latents in the UNet's scale, as they are before the VAE's scaling is undone.
        bias: (3,)
        r_squared: how much of the variance of the colours of pictures it explains, 1 being all.
    """

    matrix: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]
    r_squared: float


GREY = Projection(matrix=((0.0, 0.0, 0.0),) * 4, bias=(0.0, 0.0, 0.0), r_squared=0.0)


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """The contents of `pipeline.json`.

    Attributes:
        checkpoint: the name of what was exported, for people.
        task: what its UNet was trained for; a `control` export holds a ControlNet alone, without tokenizer or schedule.
        fingerprint: SHA-256 over the checkpoint's files.
        key: SHA-256 over everything that went into the export; equal keys mean equal files.
        schedule: the checkpoint's scheduler configuration, class name included.
        resolutions: (height, width) in pixels that the export is meant for; a server accepts no others.
        tokenizer: folder of the tokenizer files, relative to `pipeline.json`; `tokenizer_sha256` is over their bytes.
        context_length: tokens per prompt chunk, start and end included.
        text_layers: of the text encoder.
        low_res_schedule: scheduler configuration of the noise on an upscaler's picture; empty for others.
        max_noise_level: of an upscaler; 0 for others.
        preview: what latents look like; a file always has it, and one made by hand is grey without it.
    """

    checkpoint: str
    family: Family
    task: Task
    fingerprint: str
    key: str
    prediction_type: str
    scaling_factor: float
    latent_channels: int
    downscale: int
    schedule: Mapping[str, Any]
    resolutions: tuple[tuple[int, int], ...]
    tokenizer: str
    tokenizer_sha256: str
    context_length: int
    text_layers: int
    components: Mapping[str, Component]
    low_res_schedule: Mapping[str, Any] = field(default_factory=dict)
    max_noise_level: int = 0
    preview: Projection = GREY

    def write(self, folder: Path) -> None:
        """Write `pipeline.json` atomically."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        unfinished = folder / f"{PIPELINE_FILE}.{os.getpid()}"
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(folder / PIPELINE_FILE)

    @classmethod
    def read(cls, folder: Path) -> PipelineSpec:
        """Read an export folder's `pipeline.json`.

        Raises:
            ArtefactError: it is missing, is not JSON, or was written by another version.
        """
        path = folder / PIPELINE_FILE
        remedy = "run `python -m export CHECKPOINT --out DIR` and give that DIR"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ArtefactError(f"{path} was written by another version; {remedy}")
            content["components"] = {k: _component(v) for k, v in content["components"].items()}
            content["resolutions"] = tuple((h, w) for h, w in content["resolutions"])
            content["preview"] = _projection(content["preview"], content["latent_channels"])
            return cls(**content)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtefactError(f"{path} does not exist; {remedy}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{path} is damaged ({error}); {remedy}") from error

    def verify(self, folder: Path) -> None:
        """Compare the files of every component and of the tokenizer with their SHA-256.

        Raises:
            ArtefactError: a file is missing or has changed since it was exported.
        """
        for component in self.components.values():
            path = folder / component.file
            if not path.is_file():
                raise ArtefactError(f"{path} does not exist; run `python -m export` again")
            if file_sha256(path) != component.sha256:
                raise ArtefactError(f"{path} is damaged, its SHA-256 has changed; run `python -m export` again")
        if folder_sha256(folder / self.tokenizer) != self.tokenizer_sha256:
            raise ArtefactError(f"the tokenizer in {folder / self.tokenizer} is damaged; run `python -m export` again")

    def component(self, name: str) -> Component:
        """The named component.

        Raises:
            ArtefactError: it was not exported.
        """
        if name not in self.components:
            raise ArtefactError(
                f"{PIPELINE_FILE} has no component {name!r}, only {sorted(self.components)}; export again"
            )
        return self.components[name]


def _component(content: dict[str, Any]) -> Component:
    for side in ("inputs", "outputs"):
        content[side] = tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in content[side])
    return Component(**content)


def _projection(content: dict[str, Any], channels: int) -> Projection:
    """Raises ValueError, KeyError or TypeError where it is not one of latents of that many channels."""
    *matrix, bias = (
        (float(red), float(green), float(blue)) for red, green, blue in [*content["matrix"], content["bias"]]
    )
    if len(matrix) != channels:
        raise ValueError(f"the preview takes {len(matrix)} channels, latents have {channels}")
    return Projection(tuple(matrix), bias, float(content["r_squared"]))


def parts(path: Path) -> tuple[Path, Path]:
    """An exported file, and its external data, which it may have or not."""
    return path, path.with_name(path.name + ".data")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, and of its external data (`<file>.data`) when there is any."""
    digest = hashlib.sha256()
    for part in parts(path):
        if part == path or part.exists():
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and bytes of the files in a folder; of nothing when there is no such folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        digest.update(f"{path.name}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()
