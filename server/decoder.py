"""Finished latents to encoded images, off the loop's thread: decoded several of one size in a call, then encoded."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from server.errors import ServerError
from server.image import Pixels, encode_image
from server.infotext import file_texts
from server.job import Job, JobStatus
from server.pipeline import Pipeline
from server.rows import Array

logger = logging.getLogger(__name__)

ENCODERS = 2
# Pictures that are decoded and not yet encoded; decoding waits when there are so many.
DECODED_KEPT = 16


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """A finished job, its latent (c, h, w), and when it was finished."""

    job: Job
    values: Array
    finished: float


class Listener(Protocol):
    """Who hears how long a picture took."""

    def decoded(self, images: int, seconds: float) -> None:
        """A VAE decoder call."""

    def encoded(self, job: Job, seconds: float) -> None:
        """A picture."""


class Decoder:
    """One thread that decodes what the loop has finished, or begins its next pass, and a few that encode.

    Args:
        pipelines: by checkpoint.
        images: of one VAE decoder call, at most.
        listener: hears of every picture.
        go_on: is handed each job whose next pass was begun.
        clock: seconds.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        images: int,
        listener: Listener,
        go_on: Callable[[Sequence[Job]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipelines = pipelines
        self._go_on = go_on
        self._images = images
        self._listener = listener
        self._clock = clock
        self._inbox: queue.SimpleQueue[Latent | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._encoders = ThreadPoolExecutor(ENCODERS, "encode")
        self._room = threading.BoundedSemaphore(DECODED_KEPT)

    def submit(self, job: Job, values: Array, finished: float) -> None:
        """Take a finished latent; returns at once."""
        self._inbox.put(Latent(job, values, finished))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish what was submitted, then stop."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._encoders.shutdown()

    def _run(self) -> None:
        held: list[Latent] = []
        open_ = True
        while open_ or held:
            if not held:
                open_ = self._receive(held, block=True)
            while open_ and len(held) < self._images and not self._inbox.empty():
                open_ = self._receive(held, block=False)
            if held:
                first = _kind(held[0])
                together = [latent for latent in held if _kind(latent) == first]
                held = [latent for latent in held if _kind(latent) != first]
                self.decode(together)

    def _receive(self, held: list[Latent], *, block: bool) -> bool:
        latent = self._inbox.get(block)
        if latent is not None and not latent.job.reply.answered:
            held.append(latent)
        return latent is not None

    def decode(self, latents: list[Latent]) -> None:
        """Decode latents of one size together and hand each picture to an encoder."""
        for latent in (broken := [latent for latent in latents if not np.isfinite(latent.values).all()]):
            latent.job.reply.fail(ServerError("the latent is not finite: it overflowed; try other settings"))
        latents = [latent for latent in latents if latent not in broken]
        for latent in (unfinished := [latent for latent in latents if _continues(latent)]):
            self._begin_next(latent)
        latents = [latent for latent in latents if latent not in unfinished]
        if latents:
            self._decode(latents)

    def _begin_next(self, latent: Latent) -> None:
        job = latent.job
        try:
            assert job.work.then is not None
            job.following = job.work.then(latent.values)
        except ServerError as error:
            job.reply.fail(error)
        except Exception as error:  # whatever a runner raises; this client must be answered
            logger.exception("the next pass could not be begun")
            job.reply.fail(ServerError(f"enlarging the picture failed: {error}"))
        else:
            self._go_on([job])

    def _decode(self, latents: list[Latent]) -> None:
        started = self._clock()
        try:
            pipeline = self._pipelines[latents[0].job.work.checkpoint]
            pictures = list(zip(latents, pipeline.decode(_stacked(latents)), strict=True))
        except Exception as error:  # whatever a runner raises; every client must be answered
            logger.exception("decoding %d latents failed", len(latents))
            for latent in latents:
                latent.job.reply.fail(ServerError(f"decoding failed: {error}"))
            return
        self._listener.decoded(len(latents), self._clock() - started)
        for latent, pixels in pictures:
            self._room.acquire()
            self._encoders.submit(self._encode, latent, pixels)

    def _encode(self, latent: Latent, pixels: Pixels) -> None:
        job = latent.job
        started = self._clock()
        try:
            if job.work.finish is not None:
                pixels = job.work.finish(pixels)
            notes = file_texts(job.request, job.index, self._pipelines[job.request.model].spec.checkpoint)
            data = encode_image(pixels, job.request.output_format, job.request.encoding, notes)
            self._listener.encoded(job, self._clock() - started)
            job.reply.add_image(job.index, data, pixels.shape[:2], self._timing(latent), _steps_done(job))
        except Exception as error:  # whatever Pillow raises; this client must be answered, and the others too
            logger.exception("encoding an image failed")
            job.reply.fail(ServerError(f"encoding the image failed: {error}"))
        finally:
            self._room.release()

    def _timing(self, latent: Latent) -> Mapping[str, float]:
        job = latent.job
        return {
            "queue_seconds": job.started - job.arrival,
            "denoise_seconds": latent.finished - job.started,
            "decode_seconds": self._clock() - latent.finished,
            "unet_rows": job.rows_total,
            "unet_calls": job.call_share,
        }


def _stacked(latents: list[Latent]) -> Array:
    stacked: Array = np.stack([latent.values for latent in latents])
    return stacked


def _steps_done(job: Job) -> int | None:
    """Of a job that was handed out before its end."""
    return None if job.status is JobStatus.FINISHED else job.calls_done


def _continues(latent: Latent) -> bool:
    """Whether another pass follows; not if the job was given up and this is all there will be."""
    return latent.job.work.then is not None and latent.job.status is JobStatus.NEW


def _kind(latent: Latent) -> tuple[object, ...]:
    """What latents of one call have in common."""
    return latent.job.work.checkpoint, *latent.values.shape
