"""Servers in this process that answer as a Triton does, or not quite."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as messages

from bench.traffic.echo import SERVICE, answered

Infer = Callable[[Any], Any]
THREADS = 32


class OddTriton:
    """A gRPC server; a context manager.

    Args:
        infer: gives the answer to a request.
        ready: what it says of its models; None knows no such question.
    """

    def __init__(self, infer: Infer = answered, ready: bool | None = True) -> None:
        self._infer = infer
        self._server = grpc.server(ThreadPoolExecutor(THREADS))
        if ready is not None:
            methods = {
                "ServerMetadata": _unary(
                    lambda request, context: messages.ServerMetadataResponse(name="odd"), "ServerMetadata"
                ),
                "ModelReady": _unary(lambda request, context: messages.ModelReadyResponse(ready=ready), "ModelReady"),
                "ModelInfer": _unary(lambda request, context: self._infer(request), "ModelInfer"),
                "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                    self._stream,
                    messages.ModelInferRequest.FromString,
                    messages.ModelStreamInferResponse.SerializeToString,
                ),
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> OddTriton:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.die()

    def die(self) -> None:
        """End every call at once."""
        self._server.stop(0)

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            yield messages.ModelStreamInferResponse(infer_response=self._infer(request))


def _unary(method: Callable[[Any, Any], Any], name: str) -> Any:
    request, response = getattr(messages, f"{name}Request"), getattr(messages, f"{name}Response")
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, response.SerializeToString)


@contextlib.contextmanager
def listener(says: bytes) -> Iterator[str]:
    """The address of something that says the same to everybody, after the first that it hears, and hangs up.

    Saying nothing, it does not hang up either.
    """
    done = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            if says:
                self.request.sendall(says)
            else:
                done.wait(20)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            done.set()
            server.shutdown()
            thread.join()


def said(**outputs: Any) -> Any:
    """A message with these outputs: bytes as they are, the rest as JSON."""
    message = messages.ModelInferResponse()
    for name, value in outputs.items():
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        message.outputs.add(name=name, datatype="BYTES", shape=[1])
        message.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
    return message


class Telling(OddTriton):
    """A server whose streams have these messages."""

    def __init__(self, *told: Any) -> None:
        super().__init__()
        self._told = told

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for _ in requests:
            for one in self._told:
                yield messages.ModelStreamInferResponse(infer_response=one)
