"""Errors that a client is answered with, each with Triton's name of its status code.

* ServerError         INTERNAL
    * InvalidRequest  INVALID_ARG   the request is at fault
    * Overloaded      UNAVAILABLE   the queue is full, the server stops, or the deadline has passed
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
    """A request that may succeed later or elsewhere."""

    code = "UNAVAILABLE"


class Cancelled(ServerError):
    """A request whose client went away."""

    code = "CANCELLED"


class StartupError(ServerError):
    """The server cannot start; the text says what to do."""


class ScheduleError(StartupError):
    """A scheduler configuration that is not supported."""
