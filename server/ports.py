"""Where a server listens, and whether it can."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import asdict, dataclass

from server.errors import StartupError

LABELS = {"http": "HTTP", "grpc": "gRPC", "metrics": "metrics"}


@dataclass(frozen=True, slots=True)
class Ports:
    """One TCP port per protocol. 0 stands for a free port; see `chosen`."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def chosen(self, address: str) -> Ports:
        """The same ports, with each 0 replaced by a port of `address` that nobody listens on now.

        Raises:
            StartupError: one is taken, given twice, or not to be had at this address.
        """
        with contextlib.ExitStack() as stack:
            numbers = [_bound(stack, name, address, port) for name, port in asdict(self).items()]
        if len(set(numbers)) < len(numbers):
            raise StartupError(
                f"HTTP, gRPC and metrics have the ports {', '.join(map(str, numbers))}; give each a port of its own "
                "with --http-port, --grpc-port and --metrics-port"
            )
        return Ports(*numbers)


def free_ports(address: str = "127.0.0.1") -> Ports:
    """Three ports that nobody listens on now."""
    return Ports(0, 0, 0).chosen(address)


def _bound(stack: contextlib.ExitStack, name: str, address: str, port: int) -> int:
    """The number of a port that stays bound until the stack closes."""
    if not 0 <= port <= 65535:
        raise StartupError(f"port {port} for {LABELS[name]} does not exist; give one up to 65535 with --{name}-port")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        one = stack.enter_context(socket.socket(family, kind, protocol))
        # Connections of a server that has just ended linger on its ports and hinder nobody from listening.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(place)
    except OSError as error:
        raise StartupError(_refusal(name, address, port, error)) from None
    return int(one.getsockname()[1])


def _refusal(name: str, address: str, port: int, error: OSError) -> str:
    place, option = f"port {port} of {address}, meant for {LABELS[name]},", f"--{name}-port"
    if error.errno == errno.EADDRINUSE:
        return f"{place} is taken; stop what listens there, or choose another with {option}"
    return f"{place} cannot be listened on ({error.strerror}); change --address or {option}"
