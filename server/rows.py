"""From jobs to the rows of a UNet call and back: gather, guide, advance.

A call's rows are the first positive rows of all jobs, then the negative rows of the jobs that have one, then the
further positive rows of composed prompts; within each part in the order of the jobs' slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import is_
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from server import fused
from server.blend import Blends
from server.extras import Extras
from server.job import Batch, Job
from server.table import C_IN, TIMESTEP, P, Q

if TYPE_CHECKING:
    from server.conditioning import Condition

Array: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]
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
class Layout:
    """Which row of a call is whose; the same for every call of the same conditions.

    Attributes:
        rows: without padding.
        owners: (padded rows,) the index of the job of each row, -1 for padding.
        order: (padded rows,) the rows job by job.
        negatives: (jobs,) the negative row of each job, -1 where it has none.
        further: (jobs + 1,) where the further positive rows of each job begin.
        scales: (jobs + further rows,) guidance scales, job after job.
        context: (padded rows, tokens, width).
    """

    rows: int
    owners: Integers
    order: Integers
    negatives: Integers
    further: Integers
    scales: Array
    context: Array

    @classmethod
    def of(cls, conditions: Sequence[Condition], batch_sizes: Sequence[int]) -> Layout:
        """The rows of jobs that have these conditions, in this order."""
        n = len(conditions)
        guided = [i for i, condition in enumerate(conditions) if condition.negative is not None]
        more = [len(condition.positives) - 1 for condition in conditions]
        further = list(accumulate(more, initial=n + len(guided)))
        rows = further[-1]
        padding = padded_size(rows, batch_sizes) - rows
        negatives = np.full(n, -1, np.int64)
        negatives[guided] = range(n, n + len(guided))
        owners = [*range(n), *guided, *(i for i, count in enumerate(more) for _ in range(count)), *[-1] * padding]
        parts = [condition.positives[0] for condition in conditions]
        parts += [condition.negative for condition in conditions if condition.negative is not None]
        parts += [states for condition in conditions for states in condition.positives[1:]]
        context = np.stack(parts + [parts[0]] * padding)
        # A runner on a GPU does not copy again what nobody can write to.
        context.flags.writeable = False
        return cls(
            rows=rows,
            owners=np.array(owners, np.int64),
            order=np.argsort(owners, kind="stable").astype(np.int64),
            negatives=negatives,
            further=np.array(further, np.int64),
            scales=np.array([scale for condition in conditions for scale in condition.scales], np.float32),
            context=context,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One UNet call.

    Attributes:
        jobs: in the order of their slots.
        slots: (jobs,) their lines in the state.
        steps: (jobs,) UNet calls that each has behind it.
        moves: (jobs, columns) of their tables.
        layout: whose the rows are.
    """

    jobs: tuple[Job, ...]
    slots: Integers
    steps: Integers
    moves: Array
    layout: Layout

    @property
    def rows(self) -> int:
        """Without padding."""
        return self.layout.rows

    @property
    def draws(self) -> bool:
        """Whether any of its jobs draws noise after it."""
        return any(job.work.table.draws[job.step_index] for job in self.jobs)


class BucketState:
    """What the running jobs of a bucket keep between calls: latent, previous latent, four kept outputs.

    The lines of running jobs are always the first ones, so that a call of all of them goes through memory in order.

    Args:
        capacity: jobs at most.
        shape: (channels, height, width) of a latent.
        batch_sizes: what the engine takes; empty means any.
        extra_channels: that follow the latent's in the UNet's input.
        labelled: whether the UNet takes class labels.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, int, int],
        batch_sizes: Sequence[int] = (),
        extra_channels: int = 0,
        labelled: bool = False,
    ) -> None:
        self.jobs: list[Job] = []
        self._capacity = capacity
        self._shape = shape
        size = int(np.prod(shape))
        self._size = size
        self._kept = np.zeros((capacity, fused.KEPT, size + fused.GAP), np.float32)
        self._extras = Extras(shape, extra_channels, labelled)
        self._blends = Blends(capacity, shape, size + fused.GAP)
        self._batch_sizes = tuple(batch_sizes)
        self._layout: Layout | None = None
        self._conditions: list[Condition] = []

    def join(self, job: Job) -> None:
        """Give a job a slot and its first latent, which is drawn where it brings none.

        Raises:
            RuntimeError: all are taken, and the scheduler must not let so many jobs run; or it is of another bucket.
        """
        if len(self.jobs) == self._capacity:
            raise RuntimeError(f"all {self._capacity} slots are taken")
        work = job.work
        self._extras.check(work)
        latent = work.start
        if latent is None:
            latent = work.noise.normal(self._shape) * np.float32(work.table.initial_scale)
        slot = len(self.jobs)
        self._kept[slot, fused.X, : self._size] = latent.ravel()
        if work.blend is not None:
            self._blends.join(slot, work.blend)
        job.slot = slot
        self.jobs.append(job)
        self._extras.forget()

    def leave(self, job: Job) -> None:
        """Free a job's slot; the last job moves there.

        Raises:
            RuntimeError: the job has none.
        """
        if not 0 <= job.slot < len(self.jobs) or self.jobs[job.slot] is not job:
            raise RuntimeError(f"slot {job.slot} is not this job's")
        last = self.jobs.pop()
        if last is not job:
            self._kept[job.slot] = self._kept[last.slot]
            self.jobs[job.slot] = last
            last.slot = job.slot
        self._blends.leave(job.slot, len(self.jobs))
        self._extras.forget()
        if not self.jobs:
            self._layout, self._conditions = None, []
        job.slot = -1

    def latent(self, job: Job) -> Array:
        """A copy of a job's latent, (c, h, w)."""
        values: Array = self._kept[job.slot, fused.X, : self._size].reshape(self._shape).copy()
        return values

    def call(self, batch: Batch) -> Call:
        """The next call of these jobs."""
        jobs = tuple(sorted(batch.jobs, key=lambda job: job.slot))
        return Call(
            jobs=jobs,
            slots=np.array([job.slot for job in jobs], np.int64),
            steps=np.array([job.step_index for job in jobs], np.int64),
            moves=np.stack([job.work.table.moves[job.step_index] for job in jobs]),
            layout=self._laid_out([job.condition for job in jobs]),
        )

    def _laid_out(self, conditions: list[Condition]) -> Layout:
        """Made again only when a condition differs from the last call's."""
        same = len(conditions) == len(self._conditions) and all(map(is_, conditions, self._conditions))
        if self._layout is None or not same:
            self._layout, self._conditions = Layout.of(conditions, self._batch_sizes), conditions
        return self._layout

    def feeds(self, call: Call) -> Feeds:
        """The UNet's inputs, valid until the next call; rows beyond the call's are zero latents that nobody sees."""
        layout = call.layout
        sample, labels = self._extras.place(call)
        fused.gather(
            self._kept,
            call.slots,
            layout.owners,
            layout.order,
            np.ascontiguousarray(call.moves[:, C_IN]),
            fused.flat(sample),
        )
        timestep = np.append(call.moves[:, TIMESTEP], np.float32(0))[layout.owners]
        feeds: Feeds = {"sample": sample, "timestep": timestep, "encoder_hidden_states": layout.context}
        if labels is not None:
            feeds["class_labels"] = labels
        return feeds

    def draw(self, call: Call) -> None:
        """Draw the noise that follows the call; what was drawn for a call that failed serves when it is made again."""
        for job in call.jobs:
            if job.work.table.draws[job.step_index] and job.drawn < job.step_index:
                self._kept[job.slot, fused.NOISE, : self._size] = job.work.noise.normal(self._shape).ravel()
                job.drawn = job.step_index

    def broken(self, call: Call, output: Array) -> list[Job]:
        """The jobs of which the UNet's output is not finite.

        Raises:
            ValueError: the output is not one of this call's rows.
        """
        expected = (len(call.layout.owners), *self._shape)
        if output.shape != expected:
            raise ValueError(f"the UNet gave {list(output.shape)} for {list(expected)}")
        found = np.zeros(len(call.jobs), np.int64)
        fused.find_broken(fused.flat(output).view(np.int32), call.layout.owners, found)
        return [job for job, is_broken in zip(call.jobs, found, strict=True) if is_broken]

    def estimate(self, call: Call, output: Array, index: int) -> Array:
        """The clean latent that the output says job `index` of the call will come to, (c, h, w); before `advance`."""
        layout, job = call.layout, call.jobs[index]
        first = index + int(layout.further[index] - layout.further[0])
        clean = np.empty(self._size, np.float32)
        fused.estimate(
            self._kept[job.slot, fused.X, : self._size],
            fused.flat(output),
            index,
            int(layout.negatives[index]),
            layout.scales[first : first + 1 + int(layout.further[index + 1] - layout.further[index])],
            int(layout.further[index]),
            np.float32(job.request.guidance_rescale),
            np.ascontiguousarray(call.moves[index, [P, Q]]),
            clean,
        )
        if job.slot in self._blends:
            fused.put_back(clean, self._blends.lines[job.slot])
        return clean.reshape(self._shape)

    def advance(self, call: Call, output: Array, broken: Sequence[Job] = ()) -> None:
        """Guide the UNet's output and move every job's latent along its line of the table, but not those `broken`.

        What a job does not repaint is put back. Rescaled guidance is Lin et al. (2023), 3.4; several positives are
        composed as in Liu et al. (2022).
        """
        slots = np.array([-1 if job in broken else job.slot for job in call.jobs], np.int64) if broken else call.slots
        levels = self._blends.levels(call.jobs, call.steps)
        fused.advance(
            self._kept,
            fused.flat(output),
            call.moves,
            slots,
            call.steps,
            call.layout.negatives,
            call.layout.further,
            np.array([job.request.guidance_rescale for job in call.jobs], np.float32),
            call.layout.scales,
            None if levels is None else self._blends.lines,
            levels,
        )
