"""The Triton model that owns the loop, `stable_diffusion_stream`, and components that are models of their own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as triton

from engines.component import PipelineSpec
from engines.errors import EngineError, FeedError
from engines.triton_runner import TritonRunner
from server import logs
from server.checkpoints import open_checkpoints
from server.errors import InvalidRequest, ServerError
from server.forwarding import Receiver
from server.launch import DRAIN_FILE, DRAINED_FILE
from server.metrics import Metrics, MetricsUpdater, TritonExporter
from server.pipeline import open_component
from server.reply import Reply
from server.service import Service
from server.tracing import open_tracer
from server.triton_io import (
    SOCKET,
    ResponseSink,
    Sender,
    check_parameters,
    component_name,
    deployment,
    failure,
    folder,
    settle,
    traceparent,
    values,
)
from server.warm_up import rehearse

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.02
TICK_SECONDS = 1.0
DRAIN_SECONDS = 20.0
# Waiting requests that are asked per round whether their client has left; each costs 14 us. Running ones always are.
ASKED_PER_ROUND = 64


class StreamModel:
    """`stable_diffusion_stream`: decoupled; owns the UNet, the loop and everything around it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = deployment(args)
        logs.configure(config.log_level, json=config.log_json)
        self._folder = folder(args)
        self._outbox = ThreadPoolExecutor(1, "responses")
        self._senders: dict[Reply, Sender] = {}
        metrics = Metrics()
        tracer = open_tracer(config.trace_endpoint or None)
        self._service = Service(
            open_checkpoints(config, TritonRunner), config, metrics, tracer, on_broken=self._end_process
        )
        self._updater = MetricsUpdater(metrics, TritonExporter(triton))
        self._updater.start()
        self._service.start()
        self._receiver = Receiver(self._folder / SOCKET, self._service.submit, self._left)
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._look_around, name="watch", daemon=True)
        self._watch.start()
        settle()

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sender = Sender(request)
            try:
                self._take(request, ResponseSink(request, sender, self._outbox))
            except ServerError as error:
                ResponseSink(request, sender, self._outbox).fail(error)
            except Exception as error:  # the other requests of this call must still be answered
                logger.exception("a request could not be read")
                sender.abandon(error)

    def _take(self, request: Any, sink: ResponseSink) -> None:
        check_parameters(request)
        reply = self._service.submit(values(request), sink, request.request_id(), traceparent(request))
        if reply is not None:
            self._senders[reply] = sink.sender

    def _left(self, reply: Reply) -> None:
        self._service.give_up(reply, "the client cancelled the request", left=True)

    def _end_process(self) -> None:
        """An engine that gives nothing but failures is not mended here: the launcher starts the server again."""
        logger.critical("the engine is broken: this process ends")
        self._service.fail_all(ServerError("the engine is broken and the server starts again; send again in a moment"))
        self._outbox.shutdown()
        os._exit(1)

    def finalize(self) -> None:
        self._stopped.set()
        self._service.close(DRAIN_SECONDS)
        self._watch.join()
        self._receiver.close()
        self._updater.close()
        self._outbox.shutdown()

    def _look_around(self) -> None:
        """Everything that is looked for from time to time, off the loop's thread."""
        last_tick = time.monotonic()
        while not self._stopped.wait(POLL_SECONDS):
            try:
                self._forget_answered()
                self._ask_who_left()
                self._service.expire_unread()
                self._drain_if_told()
                if time.monotonic() - last_tick > TICK_SECONDS:
                    last_tick = time.monotonic()
                    self._service.tick()
            except Exception:  # the next round must still be made
                logger.exception("looking around failed")

    def _forget_answered(self) -> None:
        for reply in [reply for reply in list(self._senders) if reply.answered]:
            del self._senders[reply]

    def _ask_who_left(self) -> None:
        """Asking costs a round trip to the server's process, so it is done here and not in the loop."""
        senders = list(self._senders.items())
        running = [item for item in senders if _runs(item[0])]
        waiting = [item for item in senders if not _runs(item[0])][:ASKED_PER_ROUND]
        for reply, sender in (*running, *waiting):
            if sender.is_cancelled():
                self._left(reply)
        # Whoever was asked goes to the end, so that all come round.
        for reply, sender in waiting:
            if self._senders.pop(reply, None) is not None:
                self._senders[reply] = sender

    def _drain_if_told(self) -> None:
        """The launcher asks by a file to finish what is open before it stops the server."""
        if (self._folder / DRAIN_FILE).exists():
            self._service.stop_accepting()
            if not self._service.open_replies():
                (self._folder / DRAINED_FILE).touch()


def _runs(reply: Reply) -> bool:
    return any(job.slot >= 0 for job in reply.jobs)


class ComponentModel:
    """One component as a Triton model: `text_encoder`, `vae_decoder` and so on."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = deployment(args)
        spec = PipelineSpec.read(config.model)
        self._runner = open_component(spec.component(component_name(args)), config, spec)
        rehearse(self._runner, spec)
        settle()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            outputs = self._runner.infer({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
            return triton.InferenceResponse([triton.Tensor(name, array) for name, array in outputs.items()])
        except FeedError as error:
            return failure(InvalidRequest(str(error)))
        except EngineError as error:
            return failure(ServerError(str(error)))
