"""Inpainting with a UNet that knows no mask: after every call, what lies outside the mask is put back.

known latent    k = alpha * clean + sigma * noise    at the level of the call to come; the last is (1, 0)
next latent     x = mask * x + (1 - mask) * k
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from server.job import Job

Array: TypeAlias = npt.NDArray[np.float32]

# The lines of a slot: the mask in every channel, then (1 - mask) * clean and (1 - mask) * noise.
MASK, KNOWN, KNOWN_NOISE = 0, 1, 2
PARTS = 3
NO_LINES: Array = np.zeros((0, PARTS, 0), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """What a job keeps of a latent that it repaints.

    Attributes:
        mask: (h, w), 1 where the latent is repainted, 0 where it is kept.
        clean: (c, h, w), what is kept.
        noise: (c, h, w), its noise on the way there, the same in all calls.
    """

    mask: Array
    clean: Array
    noise: Array


class Blends:
    """The blends of a bucket's running jobs, by slot; copies, in memory that is only there while a job blends.

    Args:
        capacity: jobs at most.
        shape: (channels, height, width) of a latent.
        pitch: floats from one line to the next, at least a latent's.

    Attributes:
        lines: (capacity, PARTS, pitch); (0, PARTS, 0) while no job blends.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], pitch: int) -> None:
        self.lines = NO_LINES
        self._lines_shape = capacity, PARTS, pitch
        self._shape = shape
        self._slots: set[int] = set()

    def join(self, slot: int, blend: Blend) -> None:
        """Keep a copy of what the job of a slot blends with."""
        if not self._slots:
            self.lines = np.zeros(self._lines_shape, np.float32)
        size = int(np.prod(self._shape))
        line = self.lines[slot, :, :size].reshape(PARTS, *self._shape)
        kept = np.float32(1) - blend.mask
        line[MASK] = blend.mask
        line[KNOWN] = kept * blend.clean
        line[KNOWN_NOISE] = kept * blend.noise
        self._slots.add(slot)

    def leave(self, slot: int, last: int) -> None:
        """Free a slot; the job of the slot `last` moves there."""
        self._slots.discard(slot)
        if last in self._slots:
            self.lines[slot] = self.lines[last]
            self._slots.remove(last)
            self._slots.add(slot)
        if not self._slots:
            self.lines = NO_LINES

    def __contains__(self, slot: int) -> bool:
        return slot in self._slots

    def levels(self, jobs: Sequence[Job], steps: npt.NDArray[np.int64]) -> Array | None:
        """What the kept latents of these jobs are noised to after these calls.

        Returns:
            (jobs, 2): alpha and sigma, both 0 for a job that does not blend; None when none does.
        """
        blending = [i for i, job in enumerate(jobs) if job.slot in self._slots] if self._slots else []
        if not blending:
            return None
        levels = np.zeros((len(jobs), 2), np.float32)
        for i in blending:
            levels[i] = jobs[i].work.table.levels[steps[i] + 1]
        return levels
