"""The Triton models: the stream that owns the loop, its unary face, and components that run once per image."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

import engines
from engines.component import PipelineSpec
from engines.errors import EngineError, FeedError
from engines.runner import open_runner
from engines.triton_runner import TritonRunner
from server.config import ServerConfig
from server.errors import InvalidRequest, Overloaded, ServerError, StartupError
from server.pipeline import open_pipeline
from server.reply import Reply
from server.repository import STREAM
from server.request import FIELD_BY_NAME, unknown_field
from server.service import Service

logger = logging.getLogger(__name__)

DEPLOYMENT = "deployment"
POLL_SECONDS = 0.02
DRAIN_SECONDS = 20.0
# Triton reports every failure of a decoupled model to BLS as INTERNAL, so the face asks for failures as data.
ERRORS_AS_DATA = "errors_as_data"
# Parameters that Triton's front ends add of their own accord.
RESERVED_PARAMETERS = ("triton_", "sequence_", "binary_data_output", "headers", "priority", "timeout", ERRORS_AS_DATA)


def _deployment(arguments: Mapping[str, str]) -> ServerConfig:
    ours, theirs = Path(__file__).resolve().parent.parent, Path(engines.__file__ or "").resolve().parent.parent
    if ours != theirs:
        raise StartupError(
            f"`server` was imported from {ours} but `engines` from {theirs}; "
            "start tritonserver in one checkout, with `python -m server launch`"
        )
    parameters = json.loads(arguments["model_config"])["parameters"]
    return ServerConfig.from_json(parameters.get(DEPLOYMENT, {}).get("string_value", ""))


def _failure(error: ServerError) -> Any:
    return _failed(error.code, str(error))


def _failed(code: str, message: str) -> Any:
    return triton.InferenceResponse(error=triton.TritonError(message, getattr(triton.TritonError, code)))


def _values(request: Any) -> dict[str, list[object]]:
    """The request's tensors as lists; raises InvalidRequest for parameters that were meant as fields."""
    for name in json.loads(request.parameters() or "{}"):
        if not name.startswith(RESERVED_PARAMETERS):
            known = f"{name!r} came as a request parameter; send it as an input tensor of shape [1]"
            raise InvalidRequest(known if name in FIELD_BY_NAME else unknown_field(name))
    return {tensor.name(): tensor.as_numpy().reshape(-1).tolist() for tensor in request.inputs()}


def _text_tensor(name: str, values: Sequence[bytes]) -> Any:
    return triton.Tensor(name, np.array(values, dtype=np.object_))


def _json_tensor(name: str, value: Mapping[str, Any]) -> Any:
    return _text_tensor(name, [json.dumps(value).encode()])


class _Outbox:
    """One thread that sends all responses: a send blocks for up to milliseconds, which no other thread should."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Any, Any, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="responses", daemon=True)
        self._thread.start()

    def put(self, sender: Any, response: Any, *, final: bool) -> None:
        self._queue.put((sender, response, final))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            sender, response, final = item
            try:
                sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)
            except Exception:  # a client that left must not stop the answers of the others
                logger.exception("a response could not be sent")


class _ResponseSink:
    """Answers one Triton request; failures are sent as data where the request says so."""

    def __init__(self, request: Any, outbox: _Outbox) -> None:
        self.sender = request.get_response_sender()
        self._errors_as_data = ERRORS_AS_DATA in json.loads(request.parameters() or "{}")
        self._outbox = outbox

    def progress(self, event: Mapping[str, Any]) -> None:
        self._outbox.put(self.sender, triton.InferenceResponse([_json_tensor("progress", event)]), final=False)

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None:
        tensors = [_text_tensor("images", images), _json_tensor("metadata", metadata)]
        self._outbox.put(self.sender, triton.InferenceResponse(tensors), final=True)

    def fail(self, error: ServerError) -> None:
        content = {"code": error.code, "message": str(error)}
        as_data = self._errors_as_data
        response = triton.InferenceResponse([_json_tensor("error", content)]) if as_data else _failure(error)
        self._outbox.put(self.sender, response, final=True)


class StreamModel:
    """`stable_diffusion_stream`: decoupled; owns the UNet, the loop and everything around it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = _deployment(args)
        self._outbox = _Outbox()
        self._senders: dict[Reply, Any] = {}
        self._service = Service(open_pipeline(config, TritonRunner), config)
        self._service.start()
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._watch_cancellations, name="cancellations", daemon=True)
        self._watch.start()

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sink = _ResponseSink(request, self._outbox)
            try:
                reply = self._service.submit(_values(request), sink)
                self._senders[reply] = sink.sender
            except ServerError as error:
                sink.fail(error)
            except Exception as error:  # the other requests of this call must still be answered
                logger.exception("a request could not be read")
                sink.fail(ServerError(f"the request could not be read: {error}"))

    def finalize(self) -> None:
        self._stopped.set()
        self._service.close(DRAIN_SECONDS)
        self._watch.join()
        self._outbox.close()

    def _watch_cancellations(self) -> None:
        """Asking costs a round trip to the server's process, so it is done here and not in the loop."""
        while not self._stopped.wait(POLL_SECONDS):
            for reply, sender in list(self._senders.items()):
                if reply.answered:
                    del self._senders[reply]
                elif sender.is_cancelled():
                    reply.cancelled = True


class FaceModel:
    """`stable_diffusion`: one answer per request, for plain `infer` clients; forwards to the stream by BLS."""

    def initialize(self, args: Mapping[str, str]) -> None:
        self._limit = _deployment(args).queue_limit
        self._open = 0
        self._lock = threading.Lock()

    def execute(self, requests: Sequence[Any]) -> list[None]:
        for request in requests:
            sender = request.get_response_sender()
            try:
                _values(request)
                # Tensors are only valid until execute() returns, hence the copies.
                tensors = [triton.Tensor(t.name(), t.as_numpy().copy()) for t in request.inputs()]
                self._take()
            except ServerError as error:
                sender.send(_failure(error), flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            threading.Thread(target=self._forward, args=(tensors, sender), daemon=True).start()
        return [None] * len(requests)

    def _take(self) -> None:
        with self._lock:
            if self._open >= self._limit:
                raise Overloaded(
                    f"{self._open} requests are open, this server takes {self._limit}; send again in a second"
                )
            self._open += 1

    def _forward(self, tensors: list[Any], sender: Any) -> None:
        try:
            response = self._ask(tensors)
        except Exception as error:  # this thread's client must be answered
            logger.exception("forwarding failed")
            response = _failure(ServerError(f"forwarding failed: {error}"))
        with self._lock:
            self._open -= 1
        sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _ask(self, tensors: list[Any]) -> Any:
        names = ["images", "metadata"]
        request = triton.InferenceRequest(
            model_name=STREAM,
            inputs=tensors,
            requested_output_names=[*names, "error"],
            parameters={ERRORS_AS_DATA: True},
        )
        answer = _failure(ServerError("the stream ended without an answer"))
        for response in request.exec(decoupled=True):
            if response.has_error():
                answer = triton.InferenceResponse(error=response.error())
                continue
            outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            if "error" in outputs:
                error = json.loads(outputs["error"][0])
                answer = _failed(error["code"], error["message"])
            if "images" in outputs:
                answer = triton.InferenceResponse([triton.Tensor(n, outputs[n].copy()) for n in names])
        return answer

    def finalize(self) -> None:
        """Nothing to close: open requests end with the stream's answers."""


class ComponentModel:
    """`text_encoder`, `vae_decoder`: one component as a Triton model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = _deployment(args)
        component = PipelineSpec.read(config.model).component(args["model_name"])
        self._runner = open_runner(component, config.model, config.provider, config.component_threads)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            outputs = self._runner.infer({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
            return triton.InferenceResponse([triton.Tensor(name, array) for name, array in outputs.items()])
        except FeedError as error:
            return _failure(InvalidRequest(str(error)))
        except EngineError as error:
            return _failure(ServerError(str(error)))
