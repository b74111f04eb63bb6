"""The tritonserver of this machine, and how it is called."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from server.config import ServerConfig
from server.errors import StartupError
from server.ports import Ports

CONTAINER_SERVER = Path("/opt/tritonserver/bin/tritonserver")
CONTAINER_BACKENDS = Path("/opt/tritonserver/backends")
STUB = "triton_python_backend_stub"
SHARED_MEMORY_BYTES = 64 << 20
EXIT_TIMEOUT_SECONDS = 30
# What a client of ours never needs, and what an attacker of old releases used.
RESTRICTED_APIS = ("shared-memory", "model-repository", "trace", "logging")


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver on this machine; libraries, backends and stub are given where they are not in standard places."""

    executable: Path
    libraries: Path | None = None
    backends: Path | None = None
    stub: Path | None = None

    def command(self, config: ServerConfig, repository: Path, address: str, ports: Ports, prefix: str) -> list[str]:
        """To serve a repository; the names of its shared memory begin with `prefix`."""
        restricted = f"{','.join(RESTRICTED_APIS)}:triton-access-token={secrets.token_hex(16)}"
        return [
            str(self.executable),
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
            f"--backend-config=python,shm-region-prefix-name={prefix}",
        ]

    def require_backend(self, name: str) -> None:
        """Raises StartupError where this tritonserver has no such backend."""
        if not ((self.backends or CONTAINER_BACKENDS) / name).is_dir():
            raise StartupError(
                f"the tritonserver here has no backend {name!r}; use NVIDIA's Triton image, or --backend python"
            )

    def environment(self) -> dict[str, str]:
        """The stub takes the first `python3` of PATH for its own, and must find its shared library."""
        environment = dict(os.environ)
        binaries = str(Path(sys.prefix) / "bin")
        environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", "")])
        libraries = [str(self.libraries)] if self.libraries else []
        libraries += [sysconfig.get_config_var("LIBDIR") or "", environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(part for part in libraries if part)
        return environment

    def link_backends(self, folder: Path) -> list[str]:
        """Put the stub of this Python beside the backend, as Triton wants it, unless that was done.

        Returns:
            the options that name the directory; none where the backends are in their standard place.
        """
        if self.backends is None or self.stub is None:
            return []
        target = folder / "backends" / "python"
        if not target.exists():
            target.mkdir(parents=True)
            for file in (*(self.backends / "python").iterdir(), self.stub):
                (target / file.name).symlink_to(file)
        return [f"--backend-directory={target.parent}"]


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
    stub = package / "tritonserver/python_backend_stubs" / version / STUB
    if not stub.exists():
        raise StartupError(f"nvidia-pytriton has no Python backend for Python {version}; use Python 3.11 or 3.12")
    return Installation(
        executable=package / "tritonserver/bin/tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        backends=package / "tritonserver/backends",
        stub=stub,
    )
