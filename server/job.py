"""An admitted image with its progress, and the jobs of one UNet call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from server.request import Request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from server.conditioning import Condition
    from server.pipeline import Work
    from server.reply import Reply

Bucket: TypeAlias = tuple[int, int, int]


class JobStatus(Enum):
    """Where a job is; the last three are final."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


FINAL = frozenset((JobStatus.FINISHED, JobStatus.CANCELLED, JobStatus.FAILED))


@dataclass(eq=False, slots=True)
class Job:
    """One image of an admitted request.

    Attributes:
        index: of the image within its request.
        work: what is computed with: table, embeddings, generator.
        reply: where the request's answers go.
        arrival: when it was admitted, in seconds of the server's clock.
        due: when it should be done, on the same clock; the earliest runs first.
        deadline: when it is no longer wanted, on the same clock.
        seconds: of the whole server that one of its calls is reckoned to take.
        step_index: UNet calls done.
        drawn: the last call that noise was drawn for.
        slot: its line in the bucket's state while it runs.
        started: when its first call began; 0 before.
        ended: when it was done or given up; 0 before.
        call_share: the part of all its calls that was its own: 1 / jobs in the call, summed.
        failures: failed calls that it was part of.
        suspect: whether the last of its calls has failed.
        clean: the estimate of the clean latent after its last call, where somebody may want it.
    """

    request: Request
    index: int
    work: Work
    reply: Reply
    arrival: float
    due: float = 0.0
    deadline: float | None = None
    seconds: float = 0.0
    status: JobStatus = JobStatus.NEW
    step_index: int = 0
    drawn: int = -1
    slot: int = -1
    started: float = 0.0
    ended: float = 0.0
    call_share: float = 0.0
    failures: int = 0
    suspect: bool = False
    clean: npt.NDArray[np.float32] | None = None

    @property
    def bucket(self) -> Bucket:
        """(height, width) in pixels and tokens of context; jobs of one bucket may share a call."""
        return self.request.height, self.request.width, self.work.tokens

    @property
    def condition(self) -> Condition:
        """What its next call is conditioned on."""
        return self.work.conditions[self.step_index]

    @property
    def rows(self) -> int:
        """Rows that its next call takes."""
        return self.condition.rows

    @property
    def reserved(self) -> int:
        """Rows that any of its calls takes at most."""
        return self.work.reserved

    @property
    def calls(self) -> int:
        """UNet calls from start to end."""
        return self.work.table.calls


@dataclass(frozen=True, slots=True)
class Batch:
    """The jobs of one UNet call; `joined` are those whose first call it is."""

    bucket: Bucket
    jobs: tuple[Job, ...]
    joined: tuple[Job, ...] = ()

    @property
    def size(self) -> int:
        """Rows."""
        return sum(job.rows for job in self.jobs)
