"""A server that is started again when it fails, run beside the measurement, and killed by it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from engines.errors import EngineError
from server.config import ServerConfig
from server.deployment import SHARED_MEMORY
from server.errors import ServerError, StartupError
from server.installation import STUB
from server.launch import START_SECONDS, TritonServer
from server.process_group import Process, members
from server.supervisor import Supervisor

GRACE_SECONDS = 30.0


class SupervisedServer:
    """A context manager; the server is ready when it is entered.

    Attributes:
        starts: how often it was ready.
        down_seconds: from each kill until it was ready again.
        drain_seconds: what stopping it took, once it has stopped: long when a request was never answered.
    """

    def __init__(self, config: ServerConfig, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.server = TritonServer(config, log=log)
        self.starts = 0
        self.down_seconds: list[float] = []
        self.drain_seconds = 0.0
        self._supervisor = Supervisor(self.server, grace_seconds=GRACE_SECONDS)
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._killed: float | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def __enter__(self) -> SupervisedServer:
        self._thread.start()
        try:
            self.wait_ready(1)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def wait_ready(self, starts: int) -> None:
        """Until it was ready so many times.

        Raises:
            StartupError: it is not, or not in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.starts >= starts or self._failure, START_SECONDS)
        if self.starts < starts:
            raise StartupError(f"the server did not start: {self._failure or 'it takes too long'}") from self._failure

    def processes(self) -> dict[str, Process]:
        """tritonserver, and the stub of each model by the model's name."""
        found = {}
        for process in members(self.server.pid):
            if process.pid == self.server.pid:
                found["tritonserver"] = process
            elif len(process.command) > 1 and Path(process.command[0]).name == STUB:
                found[Path(process.command[1]).parent.parent.name] = process
        return found

    def kill(self, model: str) -> bool:
        """SIGKILL to the stub of a model; False when it does not run."""
        process = self.processes().get(model)
        if process is None:
            return False
        self._killed = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        return True

    def shared_memory(self) -> list[Path]:
        """Regions of the server that runs now, or ran last."""
        return sorted(SHARED_MEMORY.glob(f"{self.server.prefix}*"))

    def _run(self) -> None:
        try:
            self._supervisor.run(self._on_ready)
        except (ServerError, EngineError, OSError) as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _on_ready(self) -> None:
        with self._changed:
            self.starts += 1
            if self._killed is not None:
                self.down_seconds.append(time.monotonic() - self._killed)
                self._killed = None
            self._changed.notify_all()

    def _stop(self) -> None:
        begun = time.monotonic()
        self._supervisor.request_stop()
        self._thread.join()
        self.drain_seconds = time.monotonic() - begun
