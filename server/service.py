"""A loaded checkpoint that takes requests: admission, the loop and the decoder, put together."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.conditioning import Text
from server.config import ServerConfig
from server.decoder import Decoder
from server.errors import InvalidRequest, Overloaded, ServerError
from server.job import Job
from server.loop import DenoiseLoop
from server.pipeline import Pipeline
from server.prompt_encoder import Embedding
from server.reply import Reply, Sink
from server.request import Request
from server.scheduler import Scheduler

logger = logging.getLogger(__name__)


class Service:
    """Accepts requests from any thread and answers each of them exactly once through its sink.

    Args:
        pipeline: the checkpoint.
        config: bounds and batch sizes.
        clock: seconds.
    """

    def __init__(self, pipeline: Pipeline, config: ServerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipeline = pipeline
        self._config = config
        self._clock = clock
        self._limits = pipeline.limits
        self._lock = threading.Lock()
        self._open: set[Reply] = set()
        self._images = 0
        self._accepting = True
        self._inbox: queue.SimpleQueue[tuple[Reply, float] | None] = queue.SimpleQueue()
        self._admission = threading.Thread(target=self._admit, name="admission", daemon=True)
        self._decoder = Decoder(pipeline, config.decode_images, clock)
        scheduler = Scheduler(config.max_rows)
        self.loop = DenoiseLoop(pipeline, scheduler, self._decoder.submit, config.batch_sizes, clock)

    def start(self) -> None:
        self._decoder.start()
        self.loop.start()
        self._admission.start()

    def submit(self, tensors: Mapping[str, Sequence[object]], sink: Sink) -> Reply:
        """Accept a request given as lists of values per named tensor.

        Raises:
            InvalidRequest: it is at fault.
            Overloaded: too many images are unanswered, or the server stops.
        """
        request = Request.parse(tensors, self._limits)
        reply = Reply(request, sink, self._closed)
        with self._lock:
            if not self._accepting:
                raise Overloaded("the server is stopping; send to another one")
            if self._images + request.num_images > self._config.queue_limit:
                raise Overloaded(
                    f"{self._images} images are waiting or running, this server takes {self._config.queue_limit}; "
                    "send again in a second, or to another server"
                )
            self._images += request.num_images
            self._open.add(reply)
        self._inbox.put((reply, self._clock()))
        return reply

    def open_replies(self) -> list[Reply]:
        """The requests that are not answered yet."""
        with self._lock:
            return list(self._open)

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, give the open ones so long, answer the rest with an error, stop."""
        with self._lock:
            self._accepting = False
        end = self._clock() + drain_seconds
        while self.open_replies() and self._clock() < end:
            time.sleep(0.02)
        self._inbox.put(None)
        if self._admission.is_alive():
            self._admission.join()
        self.loop.close()
        self._decoder.close()
        for reply in self.open_replies():
            reply.fail(Overloaded("the server stopped before the images were done; send to another one"))

    def _closed(self, reply: Reply) -> None:
        with self._lock:
            if reply in self._open:
                self._open.remove(reply)
                self._images -= reply.request.num_images

    def _admit(self) -> None:
        while (item := self._inbox.get()) is not None:
            reply, arrival = item
            try:
                self.loop.submit(self._jobs(reply, arrival))
            except InvalidRequest as error:
                reply.fail(error)
            except Exception as error:  # whatever a runner raises; this client must be answered
                logger.exception("admission failed")
                reply.fail(ServerError(f"encoding the prompt failed: {error}"))

    def _jobs(self, reply: Reply, arrival: float) -> list[Job]:
        """One job per image, with the request's embeddings and table."""
        request = reply.request
        works, embeddings = self._pipeline.works(request)
        if works[0].reserved > self._config.max_rows:
            raise InvalidRequest(
                f"prompt has parts for {works[0].reserved} rows of a UNet call; this server's calls have "
                f"{self._config.max_rows}: join fewer parts with AND"
            )
        reply.details = self._details(embeddings)
        deadline = arrival + request.timeout_ms / 1000 if request.timeout_ms else None
        return [Job(request, i, work, reply, arrival, deadline) for i, work in enumerate(works)]

    def _details(self, embeddings: Mapping[Text, Embedding]) -> dict[str, Any]:
        spec = self._pipeline.spec
        tokens = [
            {"text": text.text, "used": embedding.used, "dropped": embedding.dropped, "chunks": embedding.chunks}
            for text, embedding in embeddings.items()
        ]
        return {"checkpoint": spec.checkpoint, "fingerprint": spec.fingerprint, "tokens": tokens}
