"""From jobs to the rows of a UNet call and back: gather, guide, advance.

A batch's rows are the positive rows of all jobs, in their order, then the negative rows of the guided ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from server.job import Batch, Job
from server.slots import SlotPool
from server.table import A1, C_IN, HISTORY, TIMESTEP, A, B, N, U, V

Array: TypeAlias = npt.NDArray[np.float32]
Lines: TypeAlias = npt.NDArray[np.float32]


def padded_size(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the engine's batch sizes that holds `size` rows; `size` itself when the engine takes any.

    Raises:
        ValueError: none is large enough.
    """
    if not sizes:
        return size
    fitting = [s for s in sizes if s >= size]
    if not fitting:
        raise ValueError(f"{size} rows are more than the largest batch size of the engine, {max(sizes)}")
    return min(fitting)


def table_lines(jobs: Sequence[Job]) -> Lines:
    """(jobs, columns): the line of each job's next call."""
    return np.stack([job.work.table.lines[job.step_index] for job in jobs])


def _column(lines: Lines, index: int) -> Array:
    column: Array = lines[:, index].reshape(-1, 1, 1, 1)
    return column


def guide(output: Array, guided: npt.NDArray[np.intp], scales: Array, jobs: int) -> Array:
    """Classifier-free guidance, Ho and Salimans (2022): negative + scale * (positive - negative).

    Args:
        output: (rows, c, h, w) in the order of a batch's rows; padding may follow.
        guided: indices of the guided jobs.
        scales: (guided, 1, 1, 1).
        jobs: how many jobs the batch has.

    Returns:
        (jobs, c, h, w); without guidance it shares memory with `output`.
    """
    positive = output[:jobs]
    if len(guided) == 0:
        return positive
    negative = output[jobs : jobs + len(guided)]
    guidance = negative + scales * (positive[guided] - negative)
    if len(guided) == jobs:
        return guidance
    mixed = positive.copy()
    mixed[guided] = guidance
    return mixed


class BucketState:
    """What the running jobs of a bucket keep between calls: latent, previous latent, four kept outputs.

    Args:
        capacity: jobs at most.
        shape: (channels, height, width) of a latent.
        batch_sizes: what the engine takes; empty means any.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], batch_sizes: Sequence[int] = ()) -> None:
        self.slots = SlotPool(capacity)
        self._x = np.zeros((capacity, *shape), np.float32)
        self._x_prev = np.zeros_like(self._x)
        self._h = np.zeros((HISTORY, capacity, *shape), np.float32)
        self._batch_sizes = tuple(batch_sizes)
        self._context: Array | None = None
        self._members: tuple[int, ...] = ()

    def join(self, job: Job) -> None:
        """Give a job a slot and its first latent."""
        job.slot = self.slots.allocate()
        self._x[job.slot] = job.work.noise.normal(self._x.shape[1:]) * np.float32(job.work.table.initial_scale)
        self._members = ()

    def leave(self, job: Job) -> None:
        """Free a job's slot."""
        self.slots.free(job.slot)
        self._members = ()

    def latent(self, job: Job) -> Array:
        """A copy of a job's latent, (c, h, w)."""
        values: Array = self._x[job.slot].copy()
        return values

    def feeds(self, batch: Batch, lines: Lines) -> dict[str, npt.NDArray[Any]]:
        """The UNet's inputs; rows beyond the batch's are zero latents that nobody sees."""
        slots, guided = _slots(batch), _guided(batch)
        rows = padded_size(batch.size, self._batch_sizes)
        positive = len(batch.jobs)
        sample = np.zeros((rows, *self._x.shape[1:]), np.float32)
        np.multiply(self._x[slots], _column(lines, C_IN), out=sample[:positive])
        sample[positive : batch.size] = sample[guided]
        timestep = np.zeros(rows, np.float32)
        timestep[:positive] = lines[:, TIMESTEP]
        timestep[positive : batch.size] = lines[guided, TIMESTEP]
        return {"sample": sample, "timestep": timestep, "encoder_hidden_states": self._contexts(batch, rows)}

    def _contexts(self, batch: Batch, rows: int) -> Array:
        """(rows, tokens, width); made again only when the batch has other members than the last time."""
        members = tuple(map(id, batch.jobs))
        if self._context is None or members != self._members or len(self._context) != rows:
            parts = [job.work.positive for job in batch.jobs]
            parts += [job.work.negative for job in batch.jobs if job.work.negative is not None]
            parts += [parts[0]] * (rows - batch.size)
            self._context, self._members = np.stack(parts), members
        return self._context

    def advance(self, batch: Batch, lines: Lines, output: Array, noise: Sequence[Array | None]) -> None:
        """Move every job's latent along its line of the table; each term touches only the jobs that have it."""
        slots = _slots(batch)
        scales = np.array([job.request.guidance_scale for job in batch.jobs if job.request.guided], np.float32)
        m = guide(output, _guided(batch), scales.reshape(-1, 1, 1, 1), len(batch.jobs))
        steps = np.array([job.step_index for job in batch.jobs])
        x = self._x[slots]
        h = _column(lines, U) * x
        h += _column(lines, V) * m
        following = _column(lines, A) * x
        following += _column(lines, B) * h
        self._add(following, lines, A1, lambda some: self._x_prev[slots[some]])
        for age in range(1, HISTORY):
            ring = (steps - age) % HISTORY
            self._add(following, lines, B + age, lambda some, ring=ring: self._h[ring[some], slots[some]])
        self._add(following, lines, N, lambda some: np.stack([noise[i] for i in some]))
        self._x_prev[slots] = x
        self._h[steps % HISTORY, slots] = h
        self._x[slots] = following

    @staticmethod
    def _add(following: Array, lines: Lines, column: int, values: Any) -> None:
        some = np.flatnonzero(lines[:, column])
        if len(some):
            following[some] += _column(lines[some], column) * values(some)


def _slots(batch: Batch) -> npt.NDArray[np.intp]:
    return np.array([job.slot for job in batch.jobs], np.intp)


def _guided(batch: Batch) -> npt.NDArray[np.intp]:
    return np.array([i for i, job in enumerate(batch.jobs) if job.request.guided], np.intp)
