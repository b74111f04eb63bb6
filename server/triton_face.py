"""The unary face, `stable_diffusion`: one answer per request, for plain `infer` clients; forwards to the stream."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from server.errors import Overloaded, ServerError
from server.repository import STREAM
from server.request import CANCEL
from server.triton_io import (
    ERRORS_AS_DATA,
    FORWARDED_AS,
    GIVE_UP,
    Sender,
    check_parameters,
    deployment,
    failed,
    failure,
    text_tensor,
)

logger = logging.getLogger(__name__)

# What only a stream can give.
STREAM_FIELDS = ("progress_interval", "preview_interval", "stream_images")
POLL_SECONDS = 0.02
# Asking whether a client has left costs 14 us; so much of one core is spent on it at most.
POLL_SHARE = 0.03
POLL_COST = 14e-6
OUTPUTS = ("images", "metadata")
# Requests beyond the stream's queue that may be on their way to be refused.
MOST_REFUSED = 32
# For Triton to let go of a call that has ended; see `FaceModel._answers`.
KEPT_SECONDS = 1.0


class FaceModel:
    """Each open request has a thread here, which waits for the stream's answer."""

    def initialize(self, args: Mapping[str, str]) -> None:
        # The stream refuses at once what is beyond its queue, so few more than that are ever open here.
        self._limit = deployment(args).queue_limit + MOST_REFUSED
        self._open: dict[str, Sender] = {}
        self._ended: deque[tuple[float, Any]] = deque()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._ask_who_left, name="watch", daemon=True)
        self._watch.start()

    def execute(self, requests: Sequence[Any]) -> list[None]:
        for request in requests:
            sender = Sender(request)
            name = secrets.token_hex(16)
            try:
                check_parameters(request)
                # Tensors are only valid until execute() returns, hence the copies.
                tensors = [
                    triton.Tensor(t.name(), t.as_numpy().copy())
                    for t in request.inputs()
                    if t.name() not in STREAM_FIELDS
                ]
                if request.request_id() and all(t.name() not in ("request_id", CANCEL.name) for t in request.inputs()):
                    tensors.append(text_tensor("request_id", [request.request_id().encode()]))
                self._take(name, sender)
                threading.Thread(target=self._forward, args=(name, tensors, sender), daemon=True).start()
            except ServerError as error:
                sender.send(failure(error), final=True)
            except Exception as error:  # the other requests of this call must still be answered
                logger.exception("a request could not be forwarded")
                self._open.pop(name, None)
                sender.abandon(error)
        return [None] * len(requests)

    def _take(self, name: str, sender: Sender) -> None:
        with self._lock:
            if len(self._open) >= self._limit:
                raise Overloaded(f"{len(self._open)} requests are open, this server takes {self._limit}", 1000)
            self._open[name] = sender

    def _forward(self, name: str, tensors: list[Any], sender: Sender) -> None:
        try:
            response = self._ask(tensors, name)
        except Exception as error:  # this thread's client must be answered
            logger.exception("forwarding failed")
            response = failure(ServerError(f"forwarding failed: {error}"))
        with self._lock:
            del self._open[name]
        try:
            sender.send(response, final=True)
        except Exception as error:  # as above
            logger.exception("a response could not be sent")
            sender.abandon(error)

    def _ask_who_left(self) -> None:
        """A call to the stream cannot be cancelled in Triton before 25.04, so the stream is told by another call."""
        told: set[str] = set()
        while True:
            with self._lock:
                waiting = [item for item in self._open.items() if item[0] not in told]
                told &= set(self._open)
            while self._ended and self._ended[0][0] < time.monotonic() - KEPT_SECONDS:
                self._ended.popleft()
            if self._stopped.wait(max(POLL_SECONDS, len(waiting) * POLL_COST / POLL_SHARE)):
                return
            for name, sender in waiting:
                try:
                    # What has not come to the stream yet is told again in the next round.
                    if sender.is_cancelled() and self._cancel(name):
                        told.add(name)
                except Exception:  # the stream may be going down; the request ends with it
                    logger.exception("a cancellation could not be forwarded")

    def finalize(self) -> None:
        """Open requests end with the stream's answers."""
        self._stopped.set()
        self._watch.join()

    def _ask(self, tensors: list[Any], name: str) -> Any:
        """The stream's answer."""
        request = triton.InferenceRequest(
            model_name=STREAM,
            inputs=tensors,
            requested_output_names=[*OUTPUTS, "error"],
            parameters={ERRORS_AS_DATA: True, FORWARDED_AS: name},
        )
        answer = failure(ServerError("the stream ended without an answer"))
        for response in self._answers(request):
            if response.has_error():
                answer = triton.InferenceResponse(error=response.error())
                continue
            outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            if "error" in outputs:
                error = json.loads(outputs["error"][0])
                answer = failed(error["code"], error["message"])
            elif "metadata" in outputs:
                images = outputs.get("images", np.array([], np.object_))
                answer = triton.InferenceResponse(
                    [triton.Tensor("images", images.copy()), triton.Tensor("metadata", outputs["metadata"].copy())]
                )
        return answer

    def _cancel(self, name: str) -> bool:
        """Whether the stream knew the request."""
        request = triton.InferenceRequest(
            model_name=STREAM,
            inputs=[text_tensor(CANCEL.name, [b""])],
            requested_output_names=["metadata", "error"],
            parameters={ERRORS_AS_DATA: True, GIVE_UP: name},
        )
        known = False
        for response in self._answers(request):
            outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            if "metadata" in outputs:
                known = bool(json.loads(outputs["metadata"][0])["cancelled"])
        return known

    def _answers(self, request: Any) -> Iterator[Any]:
        """The stream's responses to a call.

        Before 24.12 a thread of Triton frees numpy arrays without Python's lock when it is the last to let go of a call,
        and the process dies; so this one keeps the call for a while.
        """
        answers = request.exec(decoupled=True)
        try:
            yield from answers
        finally:
            self._ended.append((time.monotonic(), answers))
