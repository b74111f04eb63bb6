"""From jobs to the rows of a UNet call and back: gather, guide, advance.

A call's rows are the first positive rows of all jobs, then the negative rows of the jobs that have one, then the
further positive rows of composed prompts; within each part in the order of the jobs' slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from server.job import Batch, Job
from server.table import A1, C_IN, HISTORY, TIMESTEP, B, N, U, V

Array: TypeAlias = npt.NDArray[np.float32]
Feeds: TypeAlias = dict[str, npt.NDArray[Any]]


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


@dataclass(frozen=True, slots=True)
class Call:
    """One UNet call.

    Attributes:
        jobs: in the order of their slots.
        slots: their lines in the state; a slice when they are the first ones, all of them.
        lines: (jobs, columns) of their tables.
        fused: (jobs, 2): x' = fused_0 * x + fused_1 * m, before older terms and noise.
        guided: the indices of the jobs with a negative row.
        further: the index of the job of each further positive row.
        rows: without padding.
    """

    jobs: tuple[Job, ...]
    slots: slice | npt.NDArray[np.intp]
    lines: Array
    fused: Array
    guided: list[int]
    further: list[int]
    rows: int

    @property
    def all_guided(self) -> bool:
        return len(self.guided) == len(self.jobs)


def _spread(values: Array) -> Array:
    spread: Array = values.reshape(-1, 1, 1, 1)
    return spread


class BucketState:
    """What the running jobs of a bucket keep between calls: latent, previous latent, four kept outputs.

    The lines of running jobs are always the first ones, so that a call of all of them needs no gathering.

    Args:
        capacity: jobs at most.
        shape: (channels, height, width) of a latent.
        batch_sizes: what the engine takes; empty means any.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], batch_sizes: Sequence[int] = ()) -> None:
        self.jobs: list[Job] = []
        self._capacity = capacity
        self._shape = shape
        self._x = np.zeros((capacity, *shape), np.float32)
        self._next = np.zeros_like(self._x)
        self._x_prev = np.zeros_like(self._x)
        self._h = np.zeros((capacity, HISTORY, *shape), np.float32)
        self._m = np.zeros_like(self._x)
        self._term = np.zeros(shape, np.float32)
        self._batch_sizes = tuple(batch_sizes)
        self._context: Array | None = None
        self._conditions: list[object] = []

    def join(self, job: Job) -> None:
        """Give a job a slot and its first latent.

        Raises:
            RuntimeError: all are taken; the scheduler must not let so many jobs run.
        """
        if len(self.jobs) == self._capacity:
            raise RuntimeError(f"all {self._capacity} slots are taken")
        job.slot = len(self.jobs)
        self.jobs.append(job)
        self._x[job.slot] = job.work.noise.normal(self._shape) * np.float32(job.work.table.initial_scale)

    def leave(self, job: Job) -> None:
        """Free a job's slot; the last job moves there.

        Raises:
            RuntimeError: the job has none.
        """
        if not 0 <= job.slot < len(self.jobs) or self.jobs[job.slot] is not job:
            raise RuntimeError(f"slot {job.slot} is not this job's")
        last = self.jobs.pop()
        if last is not job:
            for state in (self._x, self._x_prev, self._h):
                state[job.slot] = state[last.slot]
            self.jobs[job.slot] = last
            last.slot = job.slot
        job.slot = -1

    def latent(self, job: Job) -> Array:
        """A copy of a job's latent, (c, h, w)."""
        values: Array = self._x[job.slot].copy()
        return values

    def call(self, batch: Batch) -> Call:
        """The next call of these jobs."""
        jobs = tuple(sorted(batch.jobs, key=lambda job: job.slot))
        whole = len(jobs) == len(self.jobs)
        conditions = [job.condition for job in jobs]
        further = [i for i, condition in enumerate(conditions) for _ in condition.positives[1:]]
        guided = [i for i, condition in enumerate(conditions) if condition.negative is not None]
        return Call(
            jobs=jobs,
            slots=slice(0, len(jobs)) if whole else np.array([job.slot for job in jobs], np.intp),
            lines=np.stack([job.work.table.lines[job.step_index] for job in jobs]),
            fused=np.stack([job.work.table.fused[job.step_index] for job in jobs]),
            guided=guided,
            further=further,
            rows=len(jobs) + len(guided) + len(further),
        )

    def feeds(self, call: Call) -> Feeds:
        """The UNet's inputs; rows beyond the call's are zero latents that nobody sees."""
        n, g = len(call.jobs), len(call.guided)
        rows = padded_size(call.rows, self._batch_sizes)
        sample = np.empty((rows, *self._shape), np.float32)
        np.multiply(self._x[call.slots], _spread(call.lines[:, C_IN]), out=sample[:n])
        timestep = np.zeros(rows, np.float32)
        timestep[:n] = call.lines[:, TIMESTEP]
        sample[n : n + g] = sample[:n] if call.all_guided else sample[call.guided]
        timestep[n : n + g] = timestep[call.guided]
        sample[n + g : call.rows] = sample[call.further]
        timestep[n + g : call.rows] = timestep[call.further]
        sample[call.rows :] = 0
        return {"sample": sample, "timestep": timestep, "encoder_hidden_states": self._contexts(call, rows)}

    def _contexts(self, call: Call, rows: int) -> Array:
        """(rows, tokens, width); made again only when a condition differs from the last call's."""
        conditions: list[object] = [job.condition for job in call.jobs]
        same = len(conditions) == len(self._conditions) and all(map(is_, conditions, self._conditions))
        if self._context is None or not same or len(self._context) != rows:
            found = [job.condition for job in call.jobs]
            parts = [condition.positives[0] for condition in found]
            parts += [condition.negative for condition in found if condition.negative is not None]
            parts += [states for condition in found for states in condition.positives[1:]]
            parts += [parts[0]] * (rows - call.rows)
            self._context, self._conditions = np.stack(parts), conditions
        return self._context

    def advance(self, call: Call, output: Array, noise: Sequence[Array | None]) -> None:
        """Move every job's latent along its line of the table."""
        n = len(call.jobs)
        m = guide(call, output, self._m[:n])
        x = self._x[call.slots]
        following = self._next[:n]
        np.multiply(x, _spread(call.fused[:, 0]), out=following)
        for i, job in enumerate(call.jobs):
            if not job.work.table.plain[job.step_index]:
                self._remember(job, call.lines[i], following[i], x[i], m[i])
        following += np.multiply(m, _spread(call.fused[:, 1]), out=self._m[:n])
        for i, fresh in enumerate(noise):
            if fresh is not None:
                following[i] += fresh * call.lines[i, N]
        if isinstance(call.slots, slice):
            self._x, self._next = self._next, self._x
        else:
            self._x[call.slots] = following

    def _remember(self, job: Job, line: Array, following: Array, x: Array, m: Array) -> None:
        """Add what older latents and outputs give to the next latent; keep what later lines need."""
        table, step, slot = job.work.table, job.step_index, job.slot
        if line[A1]:
            following += np.multiply(self._x_prev[slot], line[A1], out=self._term)
        for age in range(1, HISTORY):
            if line[B + age]:
                following += np.multiply(self._h[slot, (step - age) % HISTORY], line[B + age], out=self._term)
        if table.keeps_x[step]:
            self._x_prev[slot] = x
        if table.keeps_h[step]:
            h = self._h[slot, step % HISTORY]
            np.multiply(x, line[U], out=h)
            h += np.multiply(m, line[V], out=self._term)


def guide(call: Call, output: Array, out: Array) -> Array:
    """Classifier-free guidance, Ho and Salimans (2022): negative + sum of scale * (positive - negative).

    With several positives this is composition, Liu et al. (2022). Rescaled guidance is Lin et al. (2023), 3.4: the
    result takes on some of the first positive's deviation, over channels, height and width.

    Args:
        output: (rows, c, h, w) in the order of a call's rows; padding may follow.
        out: (jobs, c, h, w) to write to.

    Returns:
        (jobs, c, h, w): `out`, or where nothing is guided a part of `output`.
    """
    n, g = len(call.jobs), len(call.guided)
    positive, negative, further = output[:n], output[n : n + g], output[n + g : call.rows]
    if not call.guided:
        return positive
    scales = np.array([call.jobs[i].condition.scales[0] for i in call.guided], np.float32)
    m = out
    if call.all_guided:
        np.subtract(positive, negative, out=m)
        m *= _spread(scales)
        m += negative
    else:
        m[:] = positive
        for k, i in enumerate(call.guided):
            m[i] -= negative[k]
            m[i] *= scales[k]
            m[i] += negative[k]
    seen: dict[int, int] = {}
    for k, i in enumerate(call.further):
        seen[i] = seen.get(i, 0) + 1
        m[i] += (further[k] - negative[call.guided.index(i)]) * np.float32(call.jobs[i].condition.scales[seen[i]])
    for i in call.guided:
        if share := call.jobs[i].request.guidance_rescale:
            # A result without deviation has nothing to rescale, and must not fail the others of its call.
            deviation = float(m[i].std(ddof=1)) or 1.0
            m[i] *= np.float32(share * float(positive[i].std(ddof=1)) / deviation + 1 - share)
    return m
