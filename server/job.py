"""An admitted image with its progress, and the jobs of one UNet call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from server.request import Request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from server.conditioning import Condition
    from server.reply import Reply
    from server.work import Work


class Bucket(NamedTuple):
    """What jobs have in common that may share a call: the checkpoint, the size in pixels, the tokens of context."""

    checkpoint: str
    height: int
    width: int
    tokens: int

    @property
    def plot(self) -> Plot:
        """Without the tokens."""
        return Plot(self.checkpoint, self.height, self.width)


class Plot(NamedTuple):
    """A checkpoint at a size in pixels: what the time of a UNet call depends on, beside its rows."""

    checkpoint: str
    height: int
    width: int


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
        following: the pass that comes next, while the job is on its way there.
        passed, rows_passed: UNet calls of the passes that are done, and their rows.
        step_index: UNet calls done of this pass.
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
    following: Work | None = None
    passed: int = 0
    rows_passed: int = 0
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
        """Jobs of one bucket may share a call."""
        return self.work.bucket

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
        """UNet calls of this pass."""
        return self.work.table.calls

    @property
    def calls_left(self) -> int:
        """UNet calls until the picture is finished."""
        return self.calls - self.step_index + self.work.calls_after

    @property
    def calls_done(self) -> int:
        return self.passed + self.step_index

    @property
    def calls_total(self) -> int:
        """UNet calls of all passes."""
        return self.passed + self.calls + self.work.calls_after

    @property
    def rows_total(self) -> int:
        """Rows of the UNet calls of this pass and those before."""
        return self.rows_passed + self.work.rows

    def go_on(self) -> None:
        """Begin the pass that follows."""
        assert self.following is not None
        self.passed += self.step_index
        self.rows_passed += self.work.rows
        self.work, self.following = self.following, None
        self.step_index, self.drawn, self.clean = 0, -1, None


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
