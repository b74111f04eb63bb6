"""What one pass of an image computes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from server.blend import Blend
from server.conditioning import Condition
from server.image import Pixels
from server.job import Bucket
from server.noise import Noise
from server.table import Table

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Work:
    """What a job computes with.

    Attributes:
        checkpoint: by its name in this server.
        height, width: in pixels, of what is drawn.
        conditions: one per call.
        reserved: rows that any of its calls takes at most.
        start: (c, h, w), the first latent, already noised; None draws it.
        extra: (channels, h, w), what follows the latent in the UNet's input, the same for all its rows and calls.
        label: class label of its rows, an upscaler's noise level.
        blend: what is put back after every call.
        finish: done to the decoded pixels, (h, w, 3).
        then: gives the next pass from the finished latent, (c, h, w), which so is no picture yet.
        calls_after: UNet calls of the passes that follow.
    """

    checkpoint: str
    height: int
    width: int
    table: Table
    noise: Noise
    conditions: tuple[Condition, ...]
    reserved: int
    start: Array | None = None
    extra: Array | None = None
    label: int | None = None
    blend: Blend | None = None
    finish: Callable[[Pixels], Pixels] | None = None
    then: Callable[[Array], Work] | None = None
    calls_after: int = 0

    @property
    def bucket(self) -> Bucket:
        """Jobs whose works have the same one may share a call."""
        return Bucket(self.checkpoint, self.height, self.width, len(self.conditions[0].positives[0]))

    @property
    def rows(self) -> int:
        """Rows of all its calls."""
        return sum(condition.rows for condition in self.conditions)
