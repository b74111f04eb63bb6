"""When a job is due: by its deadline, its length, its priority, and how much its client has asked for already."""

from __future__ import annotations

from collections.abc import Callable

from server.request import Request

# A job without a deadline is due after so many times its time alone, so that short jobs do not wait for long ones.
STRETCH = 6.0
# A step of priority is worth so much earlier arrival.
PRIORITY_SECONDS = 10.0
# Clients that are remembered before those with nothing open are forgotten.
CLIENTS_KEPT = 1024


class Urgency:
    """Gives every job its place in one line.

    Clients share the server by virtual clocks (Zhang, 1990): a job counts as having come when the server, if it worked
    for its client alone, would have finished what the client sent before. So a thousand requests sent at once line up
    behind one another, and another client's single request passes nearly all of them; a client that found the server
    idle owes nothing for it.

    Args:
        clock: seconds, the jobs' own.

    Not thread-safe.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy_until: dict[str, float] = {}

    def due(self, request: Request, seconds: float, alone: float) -> float:
        """When a job of `request`, which comes now, is due.

        Args:
            seconds: of the whole server that it takes.
            alone: seconds that it takes when it has the server to itself.
        """
        if len(self._busy_until) > CLIENTS_KEPT:
            now = self._clock()
            self._busy_until = {client: until for client, until in self._busy_until.items() if until > now}
        arrival = self._arrival(request)
        self._busy_until[request.client_id] = arrival + seconds
        return _due(request, arrival, alone)

    def last_due(self, request: Request, seconds: float, alone: float) -> float:
        """When the last image of `request` would be due if it came now; counts nothing."""
        return _due(request, self._arrival(request) + (request.num_images - 1) * seconds, alone)

    def refund(self, client_id: str, seconds: float) -> None:
        """Work that a client had asked for is not to be done."""
        if client_id in self._busy_until:
            self._busy_until[client_id] -= seconds

    def _arrival(self, request: Request) -> float:
        now = self._clock()
        return max(now, self._busy_until.get(request.client_id, now))


def _due(request: Request, arrival: float, alone: float) -> float:
    allowed = STRETCH * alone
    if request.timeout_ms:
        allowed = min(allowed, request.timeout_ms / 1000)
    return arrival + allowed - PRIORITY_SECONDS * request.priority
