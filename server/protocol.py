"""Requests as gRPC carries them to our models, and what its failures mean; for both clients."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import grpc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError, TimedOut
from server.fields import CANCEL, FIELD_BY_NAME, Field, Raster, Value, unknown_field
from server.repository import STREAM

# A request in the protocol's own form.
Message: TypeAlias = Any
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
# gRPC gives a broken connection the code that a server which refuses has, and other words.
BROKEN = re.compile(
    r"failed to connect|dns resolution|errors resolving|stream removed|socket closed|goaway|broken pipe|"
    r"connection (reset|refused|aborted)|(recv|send)msg|keepalive|endpoint clos|transport clos",
    re.IGNORECASE,
)
CHANNEL = (
    # Without a pool of its own, a client would share the connection of every other client of the same address.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that was started again is found soon; gRPC would wait for up to two minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Disconnected(Overloaded):
    """The connection broke, or could not be made, before there was an answer."""


def stream_message(fields: Mapping[str, Value]) -> Message:
    """A request to the streaming model, which tells failures as data; raises as `input_arrays`."""
    built = message_of(STREAM, fields)
    built.parameters[ERRORS_AS_DATA].bool_param = True
    return built


def message_of(model: str, fields: Mapping[str, Value], *, batched: bool = False) -> Message:
    """A request to a model; raises as `input_arrays`.

    Args:
        batched: whether the model has a batch dimension before the fields' own.
    """
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, datatype, array in input_arrays(fields):
        message.inputs.add(name=name, datatype=datatype, shape=[1, *array.shape] if batched else array.shape)
        message.raw_input_contents.append(packed(array))
    return message


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


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Raise gRPC's errors, of either of its clients, as ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise translated(error.code().name, error.details()) from None


def translated(status: str, message: str) -> ServerError:
    """A failure of gRPC, by the name of its code, as ours."""
    if status == "UNAVAILABLE" and BROKEN.search(message):
        return Disconnected(f"{message} (is the server running, and is the address right?)")
    return ERRORS.get(status, ServerError)(message)
