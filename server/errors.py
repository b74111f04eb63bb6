"""Errors that a client is answered with, each with Triton's name of its status code.

* ServerError         INTERNAL
    * InvalidRequest  INVALID_ARG   the request is at fault
    * Overloaded      UNAVAILABLE   the queue is full, the server stops, or the deadline cannot be met
        * TimedOut                  the deadline has passed
    * NotFound        NOT_FOUND     no open request has this name
    * Cancelled       CANCELLED     the client gave up
    * StartupError    INTERNAL      the server cannot start; raised to the operator, never to a client
        * ScheduleError             the checkpoint's scheduler configuration is not supported
"""


class ServerError(Exception):
    """Something failed inside the server."""

    code = "INTERNAL"


class InvalidRequest(ServerError):
    """A request that cannot be served as it is; the text names the field, the value, what is allowed and the remedy."""

    code = "INVALID_ARG"


class Overloaded(ServerError):
    """A request that may succeed later or elsewhere.

    Args:
        retry_after_ms: when it is worth asking again, as far as the server can tell.
    """

    code = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message if retry_after_ms is None else f"{message}; retry after {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


class TimedOut(Overloaded):
    """A request that was accepted and not done in the time that its client allowed."""


class NotFound(ServerError):
    """A request that is not open, or no longer."""

    code = "NOT_FOUND"


class Cancelled(ServerError):
    """A request whose client went away."""

    code = "CANCELLED"


class StartupError(ServerError):
    """The server cannot start; the text says what to do."""


class ScheduleError(StartupError):
    """A scheduler configuration that is not supported."""
