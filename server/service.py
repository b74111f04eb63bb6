"""A loaded checkpoint that takes requests: admission, the loop and the decoder, put together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from engines.errors import FeedError
from server.admission import Admission, Cost
from server.checkpoints import Checkpoints
from server.conditioning import Text
from server.config import ServerConfig
from server.decoder import Decoder
from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError
from server.fair_queue import FairQueue
from server.fields import CANCEL
from server.job import FINAL, Job
from server.loop import DenoiseLoop
from server.metrics import Metrics
from server.monitor import Monitor
from server.picture_files import PictureLimits
from server.preparation import Preparation
from server.prompt import parse_composition
from server.prompt_encoder import Embedding
from server.reply import Reply, Sink
from server.request import Request, cancelled_id, chosen_model
from server.request_pictures import measure
from server.response_cache import ResponseCache
from server.scheduler import Scheduler
from server.tracing import Tracer
from server.warm_up import Curves, warm_up

logger = logging.getLogger(__name__)


class Service:
    """Accepts requests from any thread and answers each of them exactly once through its sink.

    Args:
        checkpoints: what is served.
        config: bounds and batch sizes.
        metrics: where figures go.
        tracer: where spans go.
        clock: seconds.
        on_broken: called, on the loop's thread, when the engine gives nothing but failures.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: ServerConfig,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._checkpoints = checkpoints
        self._config = config
        self._clock = clock
        pictures = PictureLimits(max_bytes=config.picture_bytes, max_pixels=config.picture_pixels)
        self._measure = partial(measure, limits=pictures)
        self._preparation = Preparation(checkpoints, pictures)
        first = {name: warm_up(pipeline, config) for name, pipeline in checkpoints.items()}
        points = {name: (one.step_seconds, checkpoints[name].spec.resolutions[0]) for name, one in first.items()}
        curves = Curves(points, config.batch_sizes, config.row_cap)
        self.admission = Admission(config, curves, clock)
        self.admission.decode_seconds = max(one.decode_seconds for one in first.values())
        self.monitor = Monitor(
            checkpoints, self.admission, curves, config.max_rows, metrics or Metrics(), tracer, clock, on_broken
        )
        self._cache = ResponseCache(config.response_cache_bytes)
        self._lock = threading.Lock()
        self._open: dict[Reply, tuple[Cost, list[float]]] = {}
        self._accepting = True
        # Pictures take longer to read than texts, and those who send none do not wait for them.
        self._inboxes: dict[str, FairQueue[Reply]] = {"texts": FairQueue(), "pictures": FairQueue()}
        self._readers = [
            threading.Thread(target=self._read, args=(inbox,), name=f"read {name}", daemon=True)
            for name, inbox in self._inboxes.items()
        ]
        self._decoder = Decoder(checkpoints, config.decode_images, self.monitor, self._go_on, clock)
        self.scheduler = Scheduler(config.max_rows, lambda bucket: curves(bucket.plot))
        self.loop = DenoiseLoop(
            checkpoints, self.scheduler, self._decoder.submit, self.monitor, config.batch_sizes, clock
        )

    def start(self) -> None:
        self.monitor.start()
        self._decoder.start()
        self.loop.start()
        for reader in self._readers:
            reader.start()

    def submit(
        self, tensors: Mapping[str, Sequence[object]], sink: Sink, request_id: str = "", traceparent: str | None = None
    ) -> Reply | None:
        """Accept a request given as lists of values per named tensor; None if it is answered already.

        Args:
            request_id: its name, if it has none of its own.
            traceparent: the client's W3C trace context.

        Raises:
            InvalidRequest: it is at fault.
            Overloaded: there is no room, its deadline cannot be met, or the server stops.
            NotFound: it cancels a request that is not open.
        """
        try:
            if CANCEL.name in tensors:
                sink.finish([], {"cancelled": self.cancel(cancelled_id(tensors))})
                return None
            if "request_id" not in tensors and request_id:
                tensors = {**tensors, "request_id": [request_id]}
            return self._enter(tensors, sink, traceparent)
        except ServerError as error:
            self.monitor.refused(error)
            raise

    def _enter(self, tensors: Mapping[str, Sequence[object]], sink: Sink, traceparent: str | None) -> Reply | None:
        limits = self._checkpoints.limits(chosen_model(tensors, self._checkpoints.names))
        request = Request.parse(tensors, limits, self._measure)
        keeps = self._cache.wants(request, seeded="seed" in tensors)
        if keeps:
            answer = self._cache.get(request)
            self.monitor.looked_up(answer is not None)
            if answer is not None:
                sink.finish(*answer)
                self.monitor.answered_from_cache(request)
                return None
        passes = zip(request.passes(), self._preparation.tables(request), strict=True)
        cost = self.admission.cost(request, [(plot, table.calls, _rows(one)) for one, (plot, table) in passes])
        reply = Reply(request, sink, lambda reply: self._closed(reply, keeps), self._clock(), traceparent)
        with self._lock:
            if not self._accepting:
                raise Overloaded("the server is stopping; send to another one")
            dues = self.admission.enter(request, cost)
            self._open[reply] = cost, dues
        self._inboxes["pictures" if request.pictures else "texts"].put(request.client_id, reply)
        return reply

    def cancel(self, request_id: str) -> int:
        """Cancel the open requests of this name; returns how many.

        Raises:
            NotFound: there is none.
        """
        named = [reply for reply in self.open_replies() if reply.request.request_id == request_id]
        for reply in named:
            self.give_up(reply, "the request was cancelled by its id")
        if not named:
            raise NotFound(f"no open request has the id {request_id!r}; it may have been answered already")
        return len(named)

    def give_up(self, reply: Reply, reason: str, *, left: bool = False) -> None:
        """A request is not wanted any more.

        Args:
            left: whether its client is gone, and takes no partial result either.
        """
        if reply.give_up(Cancelled(reason), partial=not left):
            self.loop.drop(reply)

    def expire_unread(self) -> None:
        """To be called often: answers requests whose time is over before their prompts were read."""
        now = self._clock()
        for reply in self.open_replies():
            timeout = reply.request.timeout_ms / 1000
            if timeout and not reply.jobs and now > reply.arrival + timeout:
                reply.expire()

    def fail_all(self, error: ServerError) -> None:
        """Refuse new requests, and answer the open ones with an error."""
        self.stop_accepting()
        for reply in self.open_replies():
            reply.fail(error)

    def open_replies(self) -> list[Reply]:
        """The requests that are not answered yet."""
        with self._lock:
            return list(self._open)

    def tick(self) -> None:
        """To be called about every second: tells those who wait of their place, and states how full the server is."""
        for reply in self.open_replies():
            waits = all(job.slot < 0 for job in reply.jobs) and any(job.status not in FINAL for job in reply.jobs)
            if reply.request.progress_interval and waits:
                reply.tell(self.monitor.expected(reply))
        self.monitor.state(self.scheduler.counts())

    def stop_accepting(self) -> None:
        """Refuse new requests from here on."""
        with self._lock:
            self._accepting = False

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, give the open ones so long, answer the rest with an error, stop."""
        self.stop_accepting()
        end = self._clock() + drain_seconds
        while self.open_replies() and self._clock() < end:
            time.sleep(0.02)
        for inbox in self._inboxes.values():
            inbox.close()
        for reader in self._readers:
            if reader.is_alive():
                reader.join()
        self.loop.close()
        self._decoder.close()
        self.fail_all(Overloaded("the server stopped before the images were done; send to another one"))
        self.monitor.close()

    def _closed(self, reply: Reply, keeps: bool) -> None:
        with self._lock:
            cost, dues = self._open.pop(reply)
            began = bool(reply.jobs)
        self.admission.leave(reply.request, cost)
        if not began:
            self.admission.forget(reply.request, dues, cost)
        # Images of a request that failed need not be drawn.
        self.loop.drop(reply)
        if keeps and reply.result is not None and reply.given_up is None:
            self._cache.put(reply.request, reply.result)
        self.monitor.answered(reply)

    def _go_on(self, jobs: Sequence[Job]) -> None:
        self.loop.submit(jobs)

    def _read(self, inbox: FairQueue[Reply]) -> None:
        """Encode prompts and pictures and make jobs, one request after the other."""
        while (reply := inbox.get()) is not None:
            try:
                self._begin(reply)
            except (InvalidRequest, Overloaded) as error:
                reply.fail(error)
            except FeedError as error:
                reply.fail(InvalidRequest(f"the prompt or a picture does not fit: {error}"))
            except Exception as error:  # whatever a runner raises; this client must be answered
                logger.exception("admission failed", extra={"request_id": reply.request.request_id})
                reply.fail(ServerError(f"encoding the prompt or a picture failed: {error}"))

    def _begin(self, reply: Reply) -> None:
        """One job per image, with the request's embeddings and table."""
        if reply.answered:
            return
        request = reply.request
        works, embeddings = self._preparation.works(request)
        most = min(self._config.max_rows, max(self._config.batch_sizes, default=self._config.max_rows))
        if works[0].reserved > most:
            raise InvalidRequest(
                f"prompt has parts for {works[0].reserved} rows of a UNet call; this server's calls have {most}: "
                "join fewer parts with AND"
            )
        reply.details = self._details(request, embeddings)
        deadline = reply.arrival + request.timeout_ms / 1000 if request.timeout_ms else None
        with self._lock:
            if reply not in self._open:
                return
            cost, dues = self._open[reply]
            states = sum(embedding.states.nbytes for embedding in embeddings.values())
            cost = self.admission.grow(request, cost, states // request.num_images)
            self._open[reply] = cost, dues
            reply.jobs = tuple(
                Job(request, i, work, reply, reply.arrival, due, deadline, seconds=cost.seconds / cost.calls)
                for i, (work, due) in enumerate(zip(works, dues, strict=True))
            )
        self.loop.submit(reply.jobs)

    def _details(self, request: Request, embeddings: Mapping[Text, Embedding]) -> dict[str, Any]:
        spec = self._checkpoints[request.model].spec
        tokens = [
            {"text": text.text, "used": embedding.used, "dropped": embedding.dropped, "chunks": embedding.chunks}
            for text, embedding in embeddings.items()
        ]
        return {"checkpoint": spec.checkpoint, "fingerprint": spec.fingerprint, "tokens": tokens}


def _rows(request: Request) -> int:
    """Rows of its calls, as its prompt tells before it is read."""
    parts = len(parse_composition(request.prompt)) if request.prompt_syntax.startswith("a1111") else 1
    return parts + (request.guided or parts > 1)
