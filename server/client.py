"""A gRPC client of the two models: unary, and streaming with progress, previews and images one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import InferResult, service_pb2_grpc

from server.answers import Event, Hearing, Result, object_of, result_of
from server.fields import CANCEL, Value
from server.protocol import CHANNEL, Message, message_of, stream_message, translating
from server.repository import FACE

Progress = Callable[[Mapping[str, Any]], None]
Picture = Callable[[Mapping[str, Any], bytes], None]


class Client:
    """Talks to a server at `host:port` over gRPC; a context manager.

    One client may be used from one thread at a time.

    Args:
        url: of the server.
        timeout: seconds that the answer to one request may take; by default, any time. A server that dies closes the
            connection, which ends its calls at once; this is for a network that loses connections without a word.
    """

    def __init__(self, url: str = "127.0.0.1:8001", timeout: float | None = None) -> None:
        self._channel = grpc.insecure_channel(url, options=CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._timeout = timeout

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def generate(self, **fields: Value) -> Result:
        """Ask the unary model; fields are those of `server.request.FIELDS`.

        Raises:
            InvalidRequest: the request is at fault.
            Disconnected: nobody answered.
            Overloaded: try again later.
            TimedOut: the client's timeout or the request's own has passed.
            ServerError: anything else.
        """
        return result_of(self._infer(fields))

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
        result = Result([], {})
        for event in self._events(stream_message({**asked, **fields})):
            result = event.result or result
            if event.kind == "image":
                images[event.about["image"]] = event.data
            if event.kind == "progress" and on_progress is not None:
                on_progress(event.about)
            listener = {"preview": on_preview, "image": on_image}.get(event.kind)
            if listener is not None:
                listener(event.about, event.data)
        return Result(result.images or [images[number] for number in sorted(images)], result.metadata)

    def cancel(self, request_id: str) -> int:
        """Cancel the open requests of this id; returns how many.

        Raises:
            NotFound: there is none.
        """
        return int(object_of(self._infer({CANCEL.name: request_id}), "metadata").get("cancelled", 0))

    def _infer(self, fields: Mapping[str, Value]) -> InferResult:
        with translating():
            return InferResult(self._stub.ModelInfer(message_of(FACE, fields), timeout=self._timeout))

    def _events(self, message: Message) -> Iterator[Event]:
        """What the streaming model sends until it ends the stream; what is left open is cancelled."""
        answers, heard = self._stub.ModelStreamInfer(iter([message]), timeout=self._timeout), Hearing()
        try:
            with translating():
                for answer in answers:
                    if (event := heard.hear(answer)) is not None:
                        yield event
        finally:
            if not heard.answered:
                answers.cancel()
        heard.finish()
