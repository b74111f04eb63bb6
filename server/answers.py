"""What our models' messages of gRPC say, or why they are not those of our models."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image
from tritonclient.grpc import InferResult
from tritonclient.utils import InferenceServerException

from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError
from server.image import Pixels
from server.repository import FACE, STREAM

KINDS: dict[str, type[ServerError]] = {kind.code: kind for kind in (InvalidRequest, Overloaded, NotFound, Cancelled)}
EventKind: TypeAlias = Literal["progress", "preview", "image", "result"]


@dataclass(frozen=True, slots=True)
class Result:
    """Encoded images and what the server says about them."""

    images: list[bytes]
    metadata: dict[str, Any]

    def pixels(self) -> list[Pixels]:
        """(height, width, 3) uint8 per image."""
        request = self.metadata["request"]
        if request["output_format"] == "raw":
            sizes = self.metadata["sizes"]
            pairs = zip(self.images, sizes, strict=True)
            return [np.frombuffer(data, np.uint8).reshape(*size, 3) for data, size in pairs]
        return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in self.images]


@dataclass(frozen=True, slots=True)
class Event:
    """One message of a stream.

    Attributes:
        about: what the server says of it, as `server.client.Client.stream` tells.
        data: JPEG of a preview, encoded image of an `image`.
        result: of the last message, `result`; without images that came as messages of their own.
    """

    kind: EventKind
    about: Mapping[str, Any] = field(default_factory=dict)
    data: bytes = b""
    result: Result | None = None


class Hearing:
    """What the messages of one stream say, one after the other.

    Attributes:
        answered: whether the last message has come. Then the stream ends by itself, and must: when a client cancels at
            that moment, Triton 2.51.0 may keep the request for ever, and takes its whole exit timeout to stop.
    """

    def __init__(self) -> None:
        self.answered = False
        self._failure: ServerError | None = None

    def hear(self, message: Any) -> Event | None:
        """What a message of the protocol tells; None for a failure, which `finish` raises.

        Raises:
            ServerError: it is not of our models, Triton failed, or the answer has come before.
        """
        if message.error_message:
            raise ServerError(message.error_message)
        if self.answered:
            raise ServerError("the stream went on after its answer")
        told = InferResult(message.infer_response)
        self._failure = failure_of(told)
        event = None if self._failure else event_of(told)
        self.answered = event is None or event.kind == "result"
        return event

    def finish(self) -> None:
        """To be called when the stream has ended; raises the failure that it told, or a ServerError for no answer."""
        if not self.answered or self._failure is not None:
            raise self._failure or ServerError("the stream ended without an answer")


def failure_of(answer: Any) -> ServerError | None:
    """The failure that a stream's message tells, if it does; raises as `event_of`."""
    if all(tensor.name != "error" for tensor in answer.get_response().outputs):
        return None
    told = object_of(answer, "error")
    failure = KINDS.get(told.get("code", ""), ServerError)(str(told.get("message")))
    if isinstance(failure, Overloaded):
        failure.retry_after_ms = told.get("retry_after_ms")
    return failure


def event_of(answer: Any) -> Event:
    """What a stream's message tells that tells no failure.

    Raises:
        ServerError: it is not of our models.
    """
    outputs = {tensor.name for tensor in answer.get_response().outputs}
    if "metadata" in outputs:
        return Event("result", result=result_of(answer))
    about = object_of(answer, "progress")
    kinds: tuple[tuple[str, EventKind], ...] = (("preview", "preview"), ("images", "image"))
    for output, kind in kinds:
        if output in outputs:
            if not isinstance(about.get("image"), int):
                raise _not_ours("progress", f"it does not say of which image the {kind} is")
            return Event(kind, about, _values(answer, output)[0])
    return Event("progress", about)


def result_of(answer: Any) -> Result:
    """The last message of a request; raises as `event_of`."""
    outputs = {tensor.name for tensor in answer.get_response().outputs}
    return Result(_values(answer, "images") if "images" in outputs else [], object_of(answer, "metadata"))


def _values(answer: Any, name: str) -> list[bytes]:
    """Those of an output that must be there."""
    try:
        array = answer.as_numpy(name)
    except (ValueError, TypeError, struct.error, InferenceServerException) as error:
        raise _not_ours(name, error) from None
    if array is None or array.size == 0 or array.dtype != np.object_:
        raise _not_ours(name, "it is missing or empty, or not BYTES")
    return [bytes(value) for value in array.reshape(-1)]


def object_of(answer: Any, name: str) -> dict[str, Any]:
    """An output that is a JSON object; raises as `event_of`."""
    text = _values(answer, name)[0]
    try:
        told = json.loads(text)
    except ValueError as error:
        raise _not_ours(name, error) from None
    if not isinstance(told, dict):
        raise _not_ours(name, "it is no JSON object")
    return told


def _not_ours(name: str, why: object) -> ServerError:
    return ServerError(
        f"the answer is not what our models send ({name}: {why}); give the address of a server with {FACE} and {STREAM}"
    )
