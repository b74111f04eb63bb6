"""How the unary face hands its requests to the process that owns the loop, and gets the answers.

A Unix socket in the launcher's folder, which only this user may enter. Calls from one Triton model to another (BLS)
would do it too, but each holds a thread in two processes, cannot be cancelled before Triton 25.04, and in 2.51.0 takes
longer than all the rest of an answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from server.errors import Overloaded, ServerError, StartupError
from server.reply import Reply

logger = logging.getLogger(__name__)

Tensors: TypeAlias = Mapping[str, Sequence[object]]
# The longest path that a Unix socket may have.
LONGEST_PATH = 107
RETRY_AFTER_MS = 2000
GONE = "the process that draws has ended and is started again"


class Asked(NamedTuple):
    """A request; `number` names it on its connection."""

    number: int
    tensors: Tensors
    request_id: str
    traceparent: str | None


class Left(NamedTuple):
    """The client of a request does not wait any more."""

    number: int


class Images(NamedTuple):
    """The answer to a request."""

    number: int
    images: list[bytes]
    metadata: Mapping[str, Any]


class Failed(NamedTuple):
    """The answer to a request that failed."""

    number: int
    error: ServerError


Answer: TypeAlias = Images | Failed


class Forwarder:
    """The face's side.

    Args:
        path: of the socket.
        answered: called once for each request that `ask` took, from another thread; it must not raise.
    """

    def __init__(self, path: Path, answered: Callable[[Answer], None]) -> None:
        self._path = str(path)
        self._answered = answered
        self._lock = threading.Lock()
        self._connection: Connection[Any, Any] | None = None
        self._open: set[int] = set()

    def ask(self, request: Asked) -> None:
        """Send a request.

        Raises:
            Overloaded: nobody is there.
        """
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = Client(self._path)
                    threading.Thread(target=self._read, args=(self._connection,), name="answers", daemon=True).start()
                self._connection.send(request)
                self._open.add(request.number)
            except OSError as error:
                raise _gone() from error

    def leave(self, number: int) -> None:
        """Say that the client of a request has left; it is answered all the same."""
        with self._lock, contextlib.suppress(OSError):
            if number in self._open and self._connection is not None:
                self._connection.send(Left(number))

    def close(self) -> None:
        """Leave all that is open."""
        with self._lock:
            if self._connection is not None:
                _hang_up(self._connection)

    def _read(self, connection: Connection[Any, Any]) -> None:
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    answer: Answer = connection.recv()
                    with self._lock:
                        self._open.discard(answer.number)
                    self._answered(answer)
        finally:
            # Whatever ended it, those who wait must be answered.
            with self._lock:
                lost, self._open, self._connection = self._open, set(), None
            for number in lost:
                self._answered(Failed(number, _gone()))
            connection.close()


class Submit(Protocol):
    """As `Service.submit`."""

    def __call__(
        self, tensors: Tensors, sink: ForwardedSink, request_id: str, traceparent: str | None
    ) -> Reply | None: ...


class Receiver:
    """The side of the process that owns the loop.

    Args:
        path: of the socket, which is made.
        submit: takes a request.
        left: told of each open request whose client, or whose face, has left.

    Raises:
        StartupError: the path is too long.
    """

    def __init__(self, path: Path, submit: Submit, left: Callable[[Reply], None]) -> None:
        if len(bytes(path)) > LONGEST_PATH:
            raise StartupError(
                f"{path} is too long for a socket ({LONGEST_PATH} bytes at most); set TMPDIR to a shorter folder"
            )
        self._submit = submit
        self._left = left
        path.unlink(missing_ok=True)
        self._path = str(path)
        self._closed = False
        self._faces: dict[Connection[Any, Any], ThreadPoolExecutor] = {}
        self._listener = Listener(self._path, "AF_UNIX", backlog=8)
        self._thread = threading.Thread(target=self._accept, name="faces", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the answers that there are, then hang up."""
        self._closed = True
        with contextlib.suppress(OSError):
            # Wakes the thread that waits for faces.
            Client(self._path).close()
        self._thread.join()
        self._listener.close()
        for face, outbox in list(self._faces.items()):
            outbox.shutdown()
            _hang_up(face)

    def _accept(self) -> None:
        while True:
            face = self._listener.accept()
            if self._closed:
                face.close()
                return
            # A face that reads slowly must not hold up the loop.
            self._faces[face] = ThreadPoolExecutor(1, "answers")
            threading.Thread(target=self._serve, args=(face,), name="forwarded", daemon=True).start()

    def _serve(self, face: Connection[Any, Any]) -> None:
        """Take one face's requests until it goes."""
        replies: dict[int, Reply] = {}
        try:
            with face, self._faces[face] as outbox, contextlib.suppress(EOFError, OSError):
                while True:
                    message: Asked | Left = face.recv()
                    if isinstance(message, Asked):
                        self._take(message, ForwardedSink(message.number, face, outbox, replies), replies)
                    elif (reply := replies.get(message.number)) is not None:
                        self._left(reply)
        finally:
            for reply in list(replies.values()):
                self._left(reply)
            del self._faces[face]

    def _take(self, asked: Asked, sink: ForwardedSink, replies: dict[int, Reply]) -> None:
        try:
            reply = self._submit(asked.tensors, sink, asked.request_id, asked.traceparent)
        except ServerError as error:
            sink.fail(error)
        except Exception as error:  # the other requests of this face must still be taken
            logger.exception("a request could not be read")
            sink.fail(ServerError(f"the request could not be read: {error}"))
        else:
            if reply is not None:
                replies[asked.number] = reply
                # It may have been answered before it was written down.
                if reply.answered:
                    replies.pop(asked.number, None)


class ForwardedSink:
    """Answers one forwarded request; what only a stream can tell is dropped."""

    def __init__(
        self, number: int, face: Connection[Any, Any], outbox: ThreadPoolExecutor, replies: dict[int, Reply]
    ) -> None:
        self._number = number
        self._face = face
        self._outbox = outbox
        self._replies = replies

    def progress(self, event: Mapping[str, Any]) -> None:
        """Not for a face."""

    def preview(self, event: Mapping[str, Any], data: bytes) -> None:
        """Not for a face."""

    def image(self, event: Mapping[str, Any], data: bytes) -> None:
        """Not for a face."""

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        self._send(Images(self._number, images, metadata))

    def fail(self, error: ServerError) -> None:
        self._send(Failed(self._number, error))

    def _send(self, answer: Answer) -> None:
        self._replies.pop(self._number, None)
        # After its face has gone, the outbox takes nothing any more.
        with contextlib.suppress(RuntimeError):
            self._outbox.submit(self._deliver, answer)

    def _deliver(self, answer: Answer) -> None:
        try:
            self._face.send(answer)
        except OSError:
            logger.debug("the face has gone, and its clients with it")
        except Exception as error:  # what cannot be written must be answered all the same
            logger.exception("an answer could not be written")
            self._send(Failed(self._number, ServerError(f"the answer could not be written: {error}")))


def _hang_up(connection: Connection[Any, Any]) -> None:
    """Ends the reading on both sides, which closing does not while a thread reads."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(connection.fileno())) as end,
    ):
        end.shutdown(socket.SHUT_RDWR)


def _gone() -> Overloaded:
    return Overloaded(f"{GONE}; send again in a moment", RETRY_AFTER_MS)
