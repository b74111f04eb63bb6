"""The server's own denoising loop on the fake accelerator, put together as `server.service.Service` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from bench.simulated.accelerator import GUIDED_ROWS, FakeAccelerator
from bench.simulated.load import LIMITS
from bench.simulated.virtual_time import VirtualClock
from server.admission import Admission, Cost
from server.config import ServerConfig
from server.job import Job
from server.loop import DenoiseLoop
from server.pipeline import Pipeline
from server.rows import Array, Call
from server.scheduler import Scheduler
from server.step_curve import StepCurve

Finished: TypeAlias = Callable[[Job, Array, float], None]
# Nothing is refused: a request that is late counts as late.
NO_LIMIT = 2**62


class Watch:
    """Keeps the step-time curve and the backlog right, as the service's monitor does."""

    def __init__(self, curve: StepCurve, admission: Admission) -> None:
        self._curve = curve
        self._admission = admission

    def turned(self) -> None:
        """Nobody asks."""

    def called(self, call: Call, moved: Sequence[Job], padded: int, seconds: float) -> None:
        self._curve.observe(padded, seconds)
        self._admission.backlog.spend([(job.due, job.seconds) for job in moved])

    def estimated(self, job: Job) -> None:
        """Nobody asks for previews."""

    def failed(self, jobs: Sequence[Job], retried: bool) -> None:
        """The replies tell."""

    def ended(self, job: Job) -> None:
        self._admission.backlog.change(job.due, -(job.calls - job.step_index) * job.seconds, -1)

    def broke(self) -> None:
        """A fake device does not."""


class InFlight:
    """Step-level batching: every turn is one UNet call.

    Args:
        device: what computes.
        max_rows: rows of one UNet call.
        clock: seconds.
        finished: is handed each finished job with its latent and the time it ended.
    """

    def __init__(self, device: FakeAccelerator, max_rows: int, clock: VirtualClock, finished: Finished) -> None:
        config = ServerConfig(Path(), max_rows=max_rows, queue_limit=NO_LIMIT, queue_bytes=NO_LIMIT)
        sizes = {*range(GUIDED_ROWS, max_rows, GUIDED_ROWS), max_rows}
        curve = StepCurve([(rows, device.curve.seconds(rows)) for rows in sizes])
        self._arrival = 0.0
        self._finished = finished
        self._costs: dict[Job, Cost] = {}
        self._admission = Admission(config, lambda plot: curve, lambda: self._arrival)
        scheduler = Scheduler(max_rows, lambda bucket: curve)
        watch = Watch(curve, self._admission)
        self._loop = DenoiseLoop({LIMITS.model: cast(Pipeline, device)}, scheduler, self._leave, watch, (), clock)

    def submit(self, job: Job) -> None:
        # The server admits while a call is being made, so a job's arrival is the time of its admission.
        self._arrival = job.arrival
        cost = self._costs[job] = self._admission.cost(job.request, [(job.bucket.plot, job.calls, job.rows)])
        job.due = self._admission.enter(job.request, cost)[0]
        job.seconds = cost.seconds / cost.calls
        self._loop.submit([job])

    def turn(self) -> bool:
        self._loop.admit()
        return self._loop.step()

    def close(self) -> None:
        self._loop.close()

    def _leave(self, job: Job, latent: Array, seconds: float) -> None:
        self._admission.leave(job.request, self._costs.pop(job))
        self._finished(job, latent, seconds)
