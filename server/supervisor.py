"""Keep a tritonserver serving: start it again when it fails, drain it when it is told to end."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.errors import StartupError
from server.launch import DRAIN_SECONDS, TritonServer, fetch

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 600.0
LONGEST_DELAY_SECONDS = 30.0
# Written by the stream at every turn of its loop, and once a second while it is idle.
HEARTBEAT = "aquatint_loop_heartbeat_timestamp_seconds"
HEARTBEAT_SECONDS = 2.0
HEARTBEAT_TIMEOUT_SECONDS = 1.0
HANG_SECONDS = 60.0
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a server that fails is started again, and after how many seconds."""

    limit: int = MAX_RESTARTS
    window_seconds: float = RESTART_WINDOW_SECONDS
    longest_delay: float = LONGEST_DELAY_SECONDS

    def delay(self, earlier: int) -> float | None:
        """Seconds to wait before a restart that has so many earlier ones in the window; None: give up."""
        if earlier >= self.limit:
            return None
        return min(2.0 ** (earlier - 1), self.longest_delay) if earlier else 0.0


class HangWatch:
    """Tells that the denoising loop has stopped turning.

    Only changes of the heartbeat count, so that nobody's clock must be right. A server that never had one is not
    watched; one that has lost it, or does not answer any more, stands still.

    Args:
        read: the heartbeat now; None when there is none.
        limit: seconds that one turn may take.
        clock: seconds.
    """

    def __init__(self, read: Callable[[], float | None], limit: float, clock: Clock = time.monotonic) -> None:
        self._read = read
        self._limit = limit
        self._clock = clock
        self._value: float | None = None
        self._still = 0.0
        self._looked = clock()

    def hang(self) -> str | None:
        """Why the server counts as hung, if it does; reads the heartbeat when that is due."""
        passed = self._clock() - self._looked
        if passed < HEARTBEAT_SECONDS:
            return None
        self._looked += passed
        value = self._read()
        if value is not None and value != self._value:
            self._value, self._still = value, 0.0
        elif self._value is not None:
            # A machine that was suspended is no hang, so a long time without a look counts little.
            self._still += min(passed, 2 * HEARTBEAT_SECONDS)
        if self._still <= self._limit:
            return None
        return f"the denoising loop has not turned for {self._still:.0f} s"


def read_heartbeat(metrics_url: str) -> float | None:
    """The oldest heartbeat among Triton's metrics, as Unix time; None when there is none."""
    lines = (fetch(metrics_url, HEARTBEAT_TIMEOUT_SECONDS) or "").splitlines()
    values = [
        float(line.rsplit(maxsplit=1)[1]) for line in lines if line.startswith((f"{HEARTBEAT}{{", f"{HEARTBEAT} "))
    ]
    return min(values, default=None)


class Supervisor:
    """Runs one server until it is asked to stop, and starts it again whenever it fails.

    Args:
        server: not started yet.
        grace_seconds: that open requests get when it is asked to stop.
        hang_seconds: that the denoising loop may stand still; 0: for ever.
        policy: when to give up.
        heartbeat: reads the loop's heartbeat; by default from the server's metrics.
        clock: seconds.
    """

    def __init__(
        self,
        server: TritonServer,
        *,
        grace_seconds: float = DRAIN_SECONDS,
        hang_seconds: float = HANG_SECONDS,
        policy: RestartPolicy | None = None,
        heartbeat: Callable[[], float | None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.restarts = 0
        self._server = server
        self._grace_seconds = grace_seconds
        self._hang_seconds = hang_seconds
        self._policy = policy or RestartPolicy()
        self._heartbeat = heartbeat or (lambda: read_heartbeat(server.metrics_url))
        self._clock = clock
        self._requests_to_stop = 0
        self._served = 0.0
        self._failures: list[float] = []

    def request_stop(self) -> None:
        """Have `run` drain the server and return; at the second call, without waiting for anything.

        From any thread, and from a signal's handler, hence no lock.
        """
        self._requests_to_stop += 1

    def run(self, on_ready: Callable[[], None] = lambda: None) -> int:
        """Serve until `request_stop`; the exit code is 0, or 1 when open requests were cut off by a second request.

        Args:
            on_ready: called after every start.

        Raises:
            StartupError: the first start failed, or the server failed too often;
                and what `TritonServer.start` raises.
        """
        try:
            self._server.start(self._stopping)
            while not self._stopping():
                on_ready()
                if (reason := self._watch()) is not None:
                    self._recover(reason)
            self._server.stop(self._grace_seconds, self._hurrying)
            return int(self._hurrying())
        finally:
            self._server.stop()

    def _stopping(self) -> bool:
        return self._requests_to_stop > 0

    def _hurrying(self) -> bool:
        return self._requests_to_stop > 1

    def _watch(self) -> str | None:
        """Why the server has to be started again; None when it is to stop."""
        hanging = HangWatch(self._heartbeat, self._hang_seconds, self._clock)
        since = self._clock()
        reason = None
        while reason is None and not self._stopping():
            time.sleep(LOOK_SECONDS)
            reason = self._server.failure() or (hanging.hang() if self._hang_seconds > 0 else None)
        self._served += self._clock() - since
        return reason

    def _recover(self, reason: str | None) -> None:
        """Start the server again until it is ready or is to stop.

        Raises:
            StartupError: that was done too often already.
        """
        while reason is not None and not self._stopping():
            self._server.kill()
            delay = self._next_delay(reason)
            self.restarts += 1
            logger.warning("%s; tritonserver starts again in %.0f s (restart %d)", reason, delay, self.restarts)
            self._pause(delay)
            try:
                if not self._stopping():
                    self._server.restart(self._stopping)
                reason = None
            except StartupError as error:
                reason = str(error)

    def _next_delay(self, reason: str) -> float:
        """Only seconds of service age a failure: a server that never gets ready does not fail less often."""
        start = self._served - self._policy.window_seconds
        self._failures = [failure for failure in self._failures if failure > start]
        delay = self._policy.delay(len(self._failures))
        if delay is None:
            minutes = self._policy.window_seconds / 60
            raise StartupError(
                f"tritonserver was started again {len(self._failures)} times within {minutes:.0f} minutes of service "
                f"and failed once more: {reason}; find the cause in its messages, then launch it again"
            )
        self._failures.append(self._served)
        return delay

    def _pause(self, seconds: float) -> None:
        end = self._clock() + seconds
        while self._clock() < end and not self._stopping():
            time.sleep(LOOK_SECONDS)


def serve_until_signal(
    supervisor: Supervisor,
    on_ready: Callable[[], None],
    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> int:
    """Run a supervisor in the main thread; the first signal drains its server, the second ends it at once.

    For the exit code and errors see `Supervisor.run`.
    """
    before = {one: signal.signal(one, lambda number, frame: supervisor.request_stop()) for one in signals}
    try:
        return supervisor.run(on_ready)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
