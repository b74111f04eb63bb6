"""A gRPC client of the two models: unary, and streaming with progress, previews and images one by one."""

from __future__ import annotations

import contextlib
import queue
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from server.answers import Event, Result, event_of, failure_of, object_of, result_of
from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError, TimedOut
from server.fields import CANCEL, FIELD_BY_NAME, Field, Raster, Value, unknown_field
from server.repository import FACE, STREAM

NUMPY_TYPES = {"STRING": np.object_, "INT64": np.int64, "FP32": np.float32, "UINT8": np.uint8}
ERRORS: dict[str, type[ServerError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "UNAVAILABLE": Overloaded,
    "NOT_FOUND": NotFound,
    "CANCELLED": Cancelled,
    "DEADLINE_EXCEEDED": TimedOut,
}
# The parameter that has a stream tell failures with their code. Triton's own way, the header `triton_grpc_error`,
# crashes its release 2.51.0 once in some thousand failures, and sooner when clients close their side of a stream first.
ERRORS_AS_DATA = "errors_as_data"
Progress = Callable[[Mapping[str, Any]], None]
Picture = Callable[[Mapping[str, Any], bytes], None]


def input_tensors(fields: Mapping[str, Value]) -> list[Any]:
    """Triton inputs of gRPC for the fields of a request; see `input_arrays`."""
    tensors = []
    for name, datatype, array in input_arrays(fields):
        tensor = grpc.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def input_arrays(fields: Mapping[str, Value]) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
    """Name, Triton's type and values of the fields of a request, of shape [1], or [n] for those that take many values.

    Pictures are the bytes of a file, or arrays for the fields that take these.

    Raises:
        InvalidRequest: a name that is no field, or a value that its type cannot hold.
    """
    for name, value in fields.items():
        field = FIELD_BY_NAME.get(name, CANCEL)
        if field.name != name:
            raise InvalidRequest(unknown_field(name))
        try:
            array = _array(field, value)
        except (OverflowError, ValueError, TypeError):
            raise InvalidRequest(f"{name} is {repr(value)[:80]}; send {field.allowed}") from None
        yield name, "BYTES" if field.datatype == "STRING" else field.datatype, array


def _array(field: Field, value: Value) -> npt.NDArray[Any]:
    dtype = NUMPY_TYPES[field.datatype]
    if field.dims:
        if isinstance(value, Raster):
            given = np.frombuffer(value.data, dtype).reshape(value.shape)
        else:
            given = np.asarray(value)
        with np.errstate(invalid="ignore"):
            array = given.astype(dtype)
        if not np.array_equal(array, given.astype(np.float32), equal_nan=True):
            raise ValueError(f"values that {dtype.__name__} cannot hold")
        # Triton takes as many dimensions as the model says.
        return array[..., None] if array.ndim == 2 and field.dims.count(",") == 2 else array
    data = value.encode() if isinstance(value, str) else value
    return np.array(data if field.many else [data], dtype=dtype).reshape(-1)


def packed(array: npt.NDArray[Any]) -> bytes:
    """Values as Triton has them in raw contents: numbers as they lie in memory, texts each after its length."""
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in array.reshape(-1))


class Client:
    """Talks to a server at `host:port` over gRPC; a context manager.

    One client may be used from one thread at a time.

    Args:
        url: of the server.
        timeout: seconds that the answer to one request may take; by default, any time. A server that dies closes the
            connection, which ends its calls at once; this is for a network that loses connections without a word.
    """

    def __init__(self, url: str = "127.0.0.1:8001", timeout: float | None = None) -> None:
        self._client = grpc.InferenceServerClient(url)
        self._timeout = timeout

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def generate(self, **fields: Value) -> Result:
        """Ask the unary model; fields are those of `server.request.FIELDS`.

        Raises:
            InvalidRequest: the request is at fault.
            Overloaded: try again later.
            TimedOut: the client's timeout or the request's own has passed.
            ServerError: anything else.
        """
        try:
            answer = self._client.infer(FACE, input_tensors(fields), client_timeout=self._timeout)
        except InferenceServerException as error:
            raise _translated(error) from None
        return result_of(answer)

    def stream(
        self,
        on_progress: Progress | None = None,
        on_preview: Picture | None = None,
        on_image: Picture | None = None,
        **fields: Value,
    ) -> Result:
        """Ask the streaming model.

        Args:
            on_progress: hears of every step: `step`, `total`, `queue_position`, `seconds_left`.
            on_preview: gets a JPEG after every fifth step, or as `preview_interval` says, with `image` and `step`.
            on_image: gets each image as soon as it is done, with `image`, its number.

        Raises:
            as `generate`.
        """
        asked: dict[str, Value] = {"progress_interval": 1} if on_progress else {}
        asked |= {"preview_interval": 5} if on_preview else {}
        asked |= {"stream_images": 1} if on_image else {}
        images: dict[int, bytes] = {}
        for event in self._events({**asked, **fields}):
            if event.result is not None:
                rest = [images[number] for number in sorted(images)]
                return Result(event.result.images or rest, event.result.metadata)
            if event.kind == "image":
                images[event.about["image"]] = event.data
            if event.kind == "progress" and on_progress is not None:
                on_progress(event.about)
            listener = {"preview": on_preview, "image": on_image}.get(event.kind)
            if listener is not None:
                listener(event.about, event.data)
        raise ServerError("the stream ended without an answer")

    def cancel(self, request_id: str) -> int:
        """Cancel the open requests of this id; returns how many.

        Raises:
            NotFound: there is none.
        """
        try:
            answer = self._client.infer(FACE, input_tensors({CANCEL.name: request_id}), client_timeout=self._timeout)
        except InferenceServerException as error:
            raise _translated(error) from None
        return int(object_of(answer, "metadata").get("cancelled", 0))

    def _events(self, fields: Mapping[str, Value]) -> Iterator[Event]:
        for answer in self._answers(fields):
            if failure := failure_of(answer):
                raise failure
            yield event_of(answer)

    def _answers(self, fields: Mapping[str, Value]) -> Iterator[Any]:
        tensors = input_tensors(fields)
        inbox: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._client.start_stream(lambda result, error: inbox.put((result, error)), stream_timeout=self._timeout)
        finished = False
        try:
            # A stream that is already dead refuses the request; its reason comes through the callback.
            with contextlib.suppress(InferenceServerException):
                asked = {ERRORS_AS_DATA: True}
                self._client.async_stream_infer(STREAM, tensors, enable_empty_final_response=True, parameters=asked)
            while not finished:
                answer, error = inbox.get()
                if error is not None:
                    raise _translated(error)
                final = answer.get_response().parameters.get("triton_final_response")
                finished = bool(final and final.bool_param)
                yield answer
        finally:
            self._client.stop_stream(cancel_requests=not finished)


def _translated(error: InferenceServerException) -> ServerError:
    status = str(error.status() or "").removeprefix("StatusCode.")
    kind = ERRORS.get(status, ServerError)
    message = error.message()
    return kind(message if status else f"{message} (is the server running, and is the address right?)")
