"""Start, stop and kill a real `tritonserver` on a deployment."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import os
import secrets
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from server.config import ServerConfig
from server.deployment import SHARED_MEMORY, check_deployment
from server.errors import StartupError
from server.installation import STUB, find_installation
from server.ports import Ports, free_ports
from server.process_group import Process, kill_group, members, mortal
from server.repository import ROOT, deployed_models, write_repository

logger = logging.getLogger(__name__)

Condition: TypeAlias = Callable[[], bool]
MODELS_FOLDER = "models"
# Beside the repository: the launcher asks the stream to drain, the stream says when it has.
DRAIN_FILE, DRAINED_FILE = "drain", "drained"
START_SECONDS = 300.0
DRAIN_SECONDS = 60.0
STOP_SECONDS = 40.0
KILL_SECONDS = 10.0


def never() -> bool:
    return False


class TritonServer:
    """A running tritonserver; a context manager that starts it and stops it.

    Start it from a thread that outlives it: the kernel ends tritonserver when that thread ends, so that it cannot be
    left behind.

    Args:
        config: what to serve.
        ports: where; by default free ones.
        address: of this machine to listen on.
        log: file for the server's output; by default it goes where ours goes.
        start_seconds: that it may take until it is ready.
    """

    def __init__(
        self,
        config: ServerConfig,
        ports: Ports | None = None,
        address: str = "127.0.0.1",
        log: Path | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.config = config
        self.ports = ports or free_ports()
        self.address = address
        self.prefix = ""
        self._log = log
        self._start_seconds = start_seconds
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._claim: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._running = False
        self._ready = False
        self._stubs: list[tuple[str, Process | None]] = []

    @property
    def grpc_url(self) -> str:
        return f"{self.address}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        return f"http://{self.address}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.address}:{self.ports.metrics}/metrics"

    @property
    def folder(self) -> Path:
        """Temporary: the model repository, and the files by which launcher and models speak of draining."""
        assert self._folder is not None
        return Path(self._folder.name)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, cancelled: Condition = never) -> None:
        """Check the deployment, write the repository, start the server, wait until every model is ready.

        Args:
            cancelled: ends the wait early.

        Raises:
            StartupError: no installation, a port that is taken, a model that does not load, or a server that is not
                ready in time; and what `check_deployment` raises.
        """
        check_deployment(self.config)
        self._folder = tempfile.TemporaryDirectory(prefix="aquatint-")
        self._claim = _claimed(self.folder)
        try:
            self.restart(cancelled)
        except BaseException:
            self.stop()
            raise

    def write_models(self, target: Path) -> None:
        """Write the model repository into an absent folder."""
        write_repository(self.config, target)

    @property
    def models(self) -> list[str]:
        """Those that are Python models, each with a process of its own."""
        return deployed_models(self.config)

    def restart(self, cancelled: Condition = never) -> None:
        """Kill what still runs, and start the same deployment on the same ports; see `start`."""
        self.kill()
        # Not everybody who cleans /tmp by age respects the claim.
        if not (models := self.folder / MODELS_FOLDER).is_dir():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.write_models(models)
        self.ports = self.ports.chosen(self.address)
        self._spawn()
        self._wait_until_ready(cancelled)

    def _spawn(self) -> None:
        installation = find_installation()
        self.prefix = f"aquatint-{os.getpid()}-{secrets.token_hex(4)}"
        command = installation.command(self.config, self.folder / MODELS_FOLDER, self.address, self.ports, self.prefix)
        with contextlib.ExitStack() as stack:
            # What a server wrote before it failed must not be lost when it is started again.
            output = stack.enter_context(self._log.open("ab" if self._process else "wb")) if self._log else None
            self._process = subprocess.Popen(
                mortal([*command, *installation.link_backends(self.folder)]),
                # The stub imports `server` from its working directory, which it puts first on sys.path.
                cwd=ROOT,
                env=installation.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                # Ctrl-C in a terminal reaches the launcher only, which drains first; and one signal kills all of it.
                process_group=0,
            )
        self._running = True

    def is_ready(self) -> bool:
        """Whether the server answers that all models are ready."""
        return fetch(f"{self.http_url}/v2/health/ready", seconds=2) is not None

    def exit_code(self) -> int | None:
        """None while the server runs."""
        return None if self._process is None else self._process.poll()

    def failure(self) -> str | None:
        """Why the server that was ready will not answer any more; None while it and the stubs of its models run.

        A stub is the process of a Python model. Triton neither restarts one nor tells anybody that it has gone.
        """
        if (code := self.exit_code()) is not None:
            return f"tritonserver ended {_cause(code)}"
        gone = [model for model, stub in self._stubs if stub is None or not stub.is_alive()]
        return f"the process of {' and '.join(gone)} has gone" if gone else None

    def _wait_until_ready(self, cancelled: Condition) -> None:
        end = time.monotonic() + self._start_seconds
        hint = f"see {self._log}" if self._log else "see its messages above"
        while not self.is_ready():
            code = self.exit_code()
            if code is not None:
                raise StartupError(f"tritonserver ended {_cause(code)} while it started; {hint}")
            if time.monotonic() > end:
                raise StartupError(
                    f"tritonserver was not ready after {self._start_seconds:.0f} s; {hint}, or give it more "
                    "--start-seconds: providers that compile take long at the first start"
                )
            if cancelled():
                return
            time.sleep(0.1)
        self._stubs = self._find_stubs()
        self._ready = True

    def _find_stubs(self) -> list[tuple[str, Process | None]]:
        """With their models; none where they cannot be found at all, and None for one that has gone already."""
        commands = [(process.command, process) for process in members(self.pid) if len(process.command) > 1]
        found = [(Path(c[1]).parent.parent.name, process) for c, process in commands if Path(c[0]).name == STUB]
        if not found:
            logger.warning("tritonserver's %s processes are not to be found: nobody will notice when one dies", STUB)
            return []
        missing = set(self.models) - {model for model, _ in found}
        return [*found, *((model, None) for model in sorted(missing))]

    def stop(self, grace_seconds: float = 0.0, hurry: Condition = never) -> None:
        """Let open requests finish, stop the server, remove the repository and the shared memory.

        Args:
            grace_seconds: that open requests get before tritonserver is told to stop. From then on it refuses calls
                from one model to another, so requests that need one more of them fail.
            hurry: kills the server as soon as it is true.
        """
        if self._ready and grace_seconds > 0:
            self._drain(grace_seconds, hurry)
        if self._ready and self.failure() is None and not hurry():
            self._terminate(hurry)
        self.kill()
        if self._folder is not None:
            self._folder.cleanup()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def _drain(self, seconds: float, hurry: Condition) -> None:
        """The stream sees the first file, refuses new requests, and writes the second when no request is open."""
        try:
            (self.folder / DRAIN_FILE).touch()
        except OSError as error:
            logger.warning("the server cannot be told to drain: %s", error)
            return
        drained = self.folder / DRAINED_FILE
        if not _wait_for(lambda: drained.exists() or self.failure() is not None or hurry(), seconds):
            logger.warning("requests are still open after %.0f s", seconds)

    def _terminate(self, hurry: Condition) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        if not _wait_for(lambda: self.exit_code() is not None or hurry(), STOP_SECONDS):
            logger.warning("tritonserver did not stop in %.0f s and is killed", STOP_SECONDS)

    def kill(self) -> None:
        """End tritonserver and its stubs at once, if they run, and remove their shared memory.

        Every open request ends with an error, and nobody answers on the ports.
        """
        # A second time, the process's number may be somebody else's.
        if self._process is None or not self._running:
            return
        self._running, self._ready, self._stubs = False, False, []
        for process in kill_group(self._process, KILL_SECONDS):
            logger.warning("process %d of tritonserver still runs %.0f s after SIGKILL", process.pid, KILL_SECONDS)
        for region in SHARED_MEMORY.glob(f"{self.prefix}*"):
            region.unlink(missing_ok=True)


def _claimed(folder: Path) -> int:
    """An open folder with a lock by which systemd-tmpfiles knows that it is in use, however old it gets."""
    claim = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(claim, fcntl.LOCK_SH)
    return claim


def fetch(url: str, seconds: float) -> str | None:
    """The text at an address of this machine; None without a good answer within `seconds`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=seconds) as answer:
            return str(answer.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException):
        return None


def _cause(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with code {code}"


def _wait_for(condition: Condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met
