"""The unary face, `stable_diffusion`: one answer per request, for plain `infer` clients; forwards to the stream."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as triton

from server.errors import ServerError
from server.forwarding import Answer, Asked, Failed, Forwarder
from server.triton_io import (
    SOCKET,
    Sender,
    check_parameters,
    deployment,
    failure,
    folder,
    json_tensor,
    settle,
    text_tensor,
    traceparent,
    values,
)

logger = logging.getLogger(__name__)

# What only a stream can give.
STREAM_FIELDS = ("progress_interval", "preview_interval", "stream_images")
POLL_SECONDS = 0.02
# Requests that are asked per round whether their client has left; each costs 14 us, and answers wait meanwhile.
ASKED_PER_ROUND = 64


class FaceModel:
    """Answers from another thread, so that any number of requests may be open."""

    def initialize(self, args: Mapping[str, str]) -> None:
        deployment(args)
        self._numbers = itertools.count()
        self._open: dict[int, Sender] = {}
        self._forwarder = Forwarder(folder(args) / SOCKET, self._answer)
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._ask_who_left, name="watch", daemon=True)
        self._watch.start()
        settle()

    def execute(self, requests: Sequence[Any]) -> list[None]:
        for request in requests:
            sender = Sender(request)
            number = next(self._numbers)
            try:
                check_parameters(request)
                tensors = {name: value for name, value in values(request).items() if name not in STREAM_FIELDS}
                self._open[number] = sender
                self._forwarder.ask(Asked(number, tensors, request.request_id(), traceparent(request)))
            except ServerError as error:
                self._open.pop(number, None)
                sender.deliver(failure(error), final=True)
            except Exception as error:  # the other requests of this call must still be answered
                logger.exception("a request could not be forwarded")
                self._open.pop(number, None)
                sender.abandon(error)
        return [None] * len(requests)

    def _answer(self, answer: Answer) -> None:
        sender = self._open.pop(answer.number)
        try:
            response = failure(answer.error) if isinstance(answer, Failed) else _response(answer)
        except Exception as error:  # the other requests must still be answered
            logger.exception("an answer could not be read")
            sender.abandon(error)
        else:
            sender.deliver(response, final=True)

    def _ask_who_left(self) -> None:
        left_over: list[tuple[int, Sender]] = []
        while not self._stopped.wait(POLL_SECONDS):
            everyone = left_over or list(self._open.items())
            asked, left_over = everyone[:ASKED_PER_ROUND], everyone[ASKED_PER_ROUND:]
            for number, sender in asked:
                try:
                    # Nothing comes of telling it again before the answer is there.
                    if sender.is_cancelled():
                        self._forwarder.leave(number)
                except Exception:  # the next round must still be made
                    logger.exception("a client could not be asked whether it has left")

    def finalize(self) -> None:
        """Triton waits for open requests before it calls this."""
        self._stopped.set()
        self._watch.join()
        self._forwarder.close()


def _response(answer: Any) -> Any:
    return triton.InferenceResponse([text_tensor("images", answer.images), json_tensor("metadata", answer.metadata)])
