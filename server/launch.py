"""Start, watch and stop a real `tritonserver` on a deployment."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from engines.component import PipelineSpec
from engines.runner import FAKE
from server.config import ServerConfig
from server.errors import StartupError
from server.repository import ROOT, deployed_models, write_repository
from server.schedule import TrainedSchedule
from server.tokenizer import PromptTokenizer

logger = logging.getLogger(__name__)

CONTAINER_SERVER = Path("/opt/tritonserver/bin/tritonserver")
START_SECONDS = 300.0
STOP_SECONDS = 40.0
EXIT_TIMEOUT_SECONDS = 30
SHARED_MEMORY_BYTES = 64 << 20
# What a client of ours never needs, and what an attacker of old releases used.
RESTRICTED_APIS = ("shared-memory", "model-repository", "trace", "logging")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens. 0 takes a free port."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver on this machine; libraries, backends and stub are given where they are not in standard places."""

    executable: Path
    libraries: Path | None = None
    backends: Path | None = None
    stub: Path | None = None


def find_installation() -> Installation:
    """The container's tritonserver if there is one, else the one inside the nvidia-pytriton wheel.

    Raises:
        StartupError: there is neither.
    """
    if CONTAINER_SERVER.exists():
        return Installation(CONTAINER_SERVER)
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise StartupError("no tritonserver here: use NVIDIA's Triton image, or `pip install nvidia-pytriton==0.7.0`")
    package = Path(found.origin).parent
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise StartupError(f"nvidia-pytriton has no Python backend for Python {version}; use Python 3.11 or 3.12")
    return Installation(
        executable=package / "tritonserver/bin/tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        backends=package / "tritonserver/backends",
        stub=stub,
    )


def free_ports() -> Ports:
    """Three ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return Ports(*(one.getsockname()[1] for one in sockets))


def _environment(installation: Installation) -> dict[str, str]:
    """The stub takes the first `python3` of PATH for its own, and must find its shared library."""
    environment = dict(os.environ)
    binaries = str(Path(sys.prefix) / "bin")
    environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", "")])
    libraries = [str(installation.libraries)] if installation.libraries else []
    libraries += [sysconfig.get_config_var("LIBDIR") or "", environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(part for part in libraries if part)
    return environment


def _command(
    installation: Installation, repository: Path, config: ServerConfig, ports: Ports, address: str
) -> list[str]:
    restricted = f"{','.join(RESTRICTED_APIS)}:triton-access-token={secrets.token_hex(16)}"
    threads = max(64, 2 * config.queue_limit)
    return [
        str(installation.executable),
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_SECONDS}",
        f"--http-address={address}",
        f"--http-port={ports.http}",
        f"--grpc-address={address}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={address}",
        f"--metrics-port={ports.metrics}",
        "--allow-gpu-metrics=false",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        f"--backend-config=python,shm-default-byte-size={SHARED_MEMORY_BYTES}",
        f"--backend-config=python,shm-region-prefix-name=aquatint-{os.getpid()}-{secrets.token_hex(4)}",
        # Each unary request holds one of the backend's threads while the stream works on it.
        f"--backend-config=python,thread-pool-size={threads}",
    ]


def _backends(installation: Installation, folder: Path) -> Path | None:
    """A backend directory with the stub of this Python beside the backend, as Triton wants it."""
    if installation.backends is None or installation.stub is None:
        return None
    target = folder / "backends" / "python"
    target.mkdir(parents=True)
    for file in (*(installation.backends / "python").iterdir(), installation.stub):
        (target / file.name).symlink_to(file)
    return target.parent


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class TritonServer:
    """A running tritonserver; a context manager that starts it and stops it.

    Args:
        config: what to serve.
        ports: where; by default free ones.
        address: of this machine to listen on.
        log: file for the server's output; by default it goes where ours goes.

    Raises (from `start`):
        StartupError: no installation, a model that does not load, or a server that is not ready in time;
            and what `check_deployment` raises.
    """

    def __init__(
        self, config: ServerConfig, ports: Ports | None = None, address: str = "127.0.0.1", log: Path | None = None
    ) -> None:
        self.config = config
        self.ports = ports or free_ports()
        self.address = address
        self._log = log
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def grpc_url(self) -> str:
        return f"{self.address}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        return f"http://{self.address}:{self.ports.http}"

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

    def start(self) -> None:
        """Check the deployment, write the repository, start the server, wait until every model is ready."""
        check_deployment(self.config)
        installation = find_installation()
        self._folder = tempfile.TemporaryDirectory(prefix="aquatint-")
        folder = Path(self._folder.name)
        write_repository(self.config, folder / "models")
        backends = _backends(installation, folder)
        command = _command(installation, folder / "models", self.config, self.ports, self.address)
        command += [f"--backend-directory={backends}"] if backends else []
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self._log.open("wb")) if self._log else None
            self._process = subprocess.Popen(
                command,
                # The stub imports `server` from its working directory, which it puts first on sys.path.
                cwd=ROOT,
                env=_environment(installation),
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def is_ready(self) -> bool:
        """Whether the server answers that all models are ready."""
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def exit_code(self) -> int | None:
        """None while the server runs."""
        return None if self._process is None else self._process.poll()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not self.is_ready():
            code = self.exit_code()
            hint = f"see {self._log}" if self._log else "see its messages above"
            if code is not None:
                raise StartupError(f"tritonserver ended with code {code} while it started; {hint}")
            if time.monotonic() > end:
                raise StartupError(f"tritonserver was not ready after {START_SECONDS:.0f} s; {hint}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Let open requests finish, stop the server, remove the repository."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("tritonserver did not stop in %.0f s and is killed", STOP_SECONDS)
                self._process.kill()
                self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()


def check_deployment(config: ServerConfig) -> PipelineSpec:
    """Look at everything that can be wrong before a server is started, so that it is told in one sentence.

    Raises:
        EngineError: an exported file is missing or damaged.
        ScheduleError: the checkpoint's schedule is not supported.
        StartupError: there is too little shared memory.
    """
    spec = PipelineSpec.read(config.model)
    if config.provider != FAKE:
        spec.verify(config.model)
    TrainedSchedule.from_config(spec.schedule)
    PromptTokenizer(config.model / spec.tokenizer, spec.context_length)
    _check_shared_memory(SHARED_MEMORY_BYTES * len(deployed_models(config)))
    return spec


def _check_shared_memory(needed: int) -> None:
    """Triton's Python models talk through /dev/shm."""
    folder = Path("/dev/shm")
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < needed:
        raise StartupError(
            f"/dev/shm has {free >> 20} MiB free, the models need {needed >> 20}; "
            "give the container more, as in `docker run --shm-size=1g`"
        )


def serve_until_signal(
    server: TritonServer, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
) -> int:
    """Wait for a signal, then stop; the exit code is 0, or 1 when the server ended of itself."""
    received = False

    def stop(number: int, frame: object) -> None:
        nonlocal received
        received = True

    for one in signals:
        signal.signal(one, stop)
    while not received:
        if (code := server.exit_code()) is not None:
            raise StartupError(f"tritonserver ended by itself with code {code}")
        time.sleep(0.2)
    server.stop()
    return 0
