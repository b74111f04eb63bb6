"""What all Triton models share: reading requests, writing answers, and the thread that sends them."""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as triton

import engines
from server.config import ServerConfig
from server.errors import InvalidRequest, Overloaded, ServerError, StartupError
from server.fields import CANCEL, FIELD_BY_NAME, Raster, unknown_field

logger = logging.getLogger(__name__)

FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
DEPLOYMENT = "deployment"
COMPONENT = "component"
# In the launcher's folder; see `server.forwarding`.
SOCKET = "stream.sock"
# Triton tells streams no code of a failure but by a header that crashes 2.51.0, so clients ask for failures as data.
ERRORS_AS_DATA = "errors_as_data"
# Parameters that Triton's front ends add of their own accord, and ours; first those that begin so.
RESERVED_PREFIXES = ("triton_", "sequence_")
RESERVED_PARAMETERS = ("binary_data_output", "headers", "priority", "timeout", ERRORS_AS_DATA)


# A thread that has something to send waits so long for one that computes; Python's default is 5 ms.
SWITCH_SECONDS = 0.0005


def deployment(arguments: Mapping[str, str]) -> ServerConfig:
    """The deployment that `launch` wrote into the model's configuration.

    Raises:
        StartupError: there is none, or two checkouts are mixed.
    """
    ours, theirs = Path(__file__).resolve().parent.parent, Path(engines.__file__ or "").resolve().parent.parent
    if ours != theirs:
        raise StartupError(
            f"`server` was imported from {ours} but `engines` from {theirs}; "
            "start tritonserver in one checkout, with `python -m server launch`"
        )
    parameters = json.loads(arguments["model_config"])["parameters"]
    return ServerConfig.from_json(parameters.get(DEPLOYMENT, {}).get("string_value", ""))


def component_name(arguments: Mapping[str, str]) -> str:
    """Of a component model."""
    return str(json.loads(arguments["model_config"])["parameters"][COMPONENT]["string_value"])


def folder(arguments: Mapping[str, str]) -> Path:
    """The launcher's, in which its processes meet; the models' repository is in it."""
    return Path(arguments["model_repository"]).parent.parent


def settle() -> None:
    """To be called when a model is loaded: shortens the pauses of this process's threads.

    What start-up made stays, so Python need not look through it for garbage again, which stops every thread.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()


def failure(error: ServerError) -> Any:
    """A response that is an error."""
    return triton.InferenceResponse(error=triton.TritonError(str(error), getattr(triton.TritonError, error.code)))


def parameters(request: Any) -> dict[str, Any]:
    """A request's parameters."""
    found: dict[str, Any] = json.loads(request.parameters() or "{}")
    return found


def check_parameters(request: Any) -> None:
    """Refuse parameters that were meant as fields.

    Raises:
        InvalidRequest: there is one.
    """
    for name in parameters(request):
        if name not in RESERVED_PARAMETERS and not name.startswith(RESERVED_PREFIXES):
            known = f"{name!r} came as a request parameter; send it as an input tensor of shape [1]"
            is_field = name in FIELD_BY_NAME or name == CANCEL.name
            raise InvalidRequest(known if is_field else unknown_field(name))


def values(request: Any) -> dict[str, list[object]]:
    """The request's tensors as lists; of an array of pixels, of itself."""
    return {tensor.name(): _listed(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()}


def _listed(name: str, array: npt.NDArray[Any]) -> list[object]:
    field = FIELD_BY_NAME.get(name)
    if field is not None and field.dims:
        return [Raster(tuple(array.shape), array.tobytes())]
    values: list[object] = array.reshape(-1).tolist()
    return values


def traceparent(request: Any) -> str | None:
    """The W3C trace context of a request, where Triton traces it by OpenTelemetry."""
    context = request.trace().get_context()
    found = json.loads(context).get("traceparent") if context else None
    return str(found) if found else None


def text_tensor(name: str, texts: Sequence[bytes]) -> Any:
    """A tensor of strings."""
    return triton.Tensor(name, np.array(texts, dtype=np.object_))


def json_tensor(name: str, value: Mapping[str, Any]) -> Any:
    """A tensor of one JSON string."""
    return text_tensor(name, [json.dumps(value).encode()])


class Sender:
    """A request's response sender that may be asked and used from several threads.

    Triton 2.51.0 crashes when a sender is asked whether its request is cancelled after the final response.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._finished = False

    def send(self, response: Any, *, final: bool) -> None:
        """Send a response; what comes after the final one is dropped."""
        with self._lock:
            if not self._finished:
                self._sender.send(response, flags=FINAL if final else 0)
                self._finished = final

    def deliver(self, response: Any, *, final: bool) -> None:
        """Send a response, or else end the request with an error."""
        try:
            self.send(response, final=final)
        except Exception as error:  # a client that left must not stop the answers of the others
            logger.exception("a response could not be sent")
            self.abandon(error)

    def abandon(self, reason: Exception) -> None:
        """A response could not be sent: end the request with an error, if even that can be sent."""
        try:
            self.send(failure(ServerError(f"a response could not be sent: {reason}")), final=True)
        except Exception:  # nothing is left to try
            logger.exception("a request could not be ended")

    def is_cancelled(self) -> bool:
        """Whether the client has left before the final response; a round trip to the server's process."""
        with self._lock:
            return not self._finished and bool(self._sender.is_cancelled())


class ResponseSink:
    """Answers one Triton request; failures are sent as data where the request says so.

    Args:
        outbox: of one thread, for order: a send blocks for up to milliseconds, which no other thread should.
    """

    def __init__(self, request: Any, sender: Sender, outbox: ThreadPoolExecutor) -> None:
        self.sender = sender
        self._errors_as_data = ERRORS_AS_DATA in parameters(request)
        self._outbox = outbox

    def progress(self, event: Mapping[str, Any]) -> None:
        self._send([json_tensor("progress", event)])

    def preview(self, event: Mapping[str, Any], data: bytes) -> None:
        self._send([json_tensor("progress", event), text_tensor("preview", [data])])

    def image(self, event: Mapping[str, Any], data: bytes) -> None:
        self._send([json_tensor("progress", event), text_tensor("images", [data])])

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        tensors = [json_tensor("metadata", metadata)]
        self._send([text_tensor("images", images), *tensors] if images else tensors, final=True)

    def fail(self, error: ServerError) -> None:
        content: dict[str, Any] = {"code": error.code, "message": str(error)}
        if isinstance(error, Overloaded) and error.retry_after_ms is not None:
            content["retry_after_ms"] = error.retry_after_ms
        as_data = self._errors_as_data
        response = triton.InferenceResponse([json_tensor("error", content)]) if as_data else failure(error)
        self._outbox.submit(self.sender.deliver, response, final=True)

    def _send(self, tensors: list[Any], *, final: bool = False) -> None:
        self._outbox.submit(self.sender.deliver, triton.InferenceResponse(tensors), final=final)
