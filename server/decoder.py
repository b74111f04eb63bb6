"""Finished latents to encoded images, off the loop's thread, several of one size in a call."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from server.errors import ServerError
from server.image import encode_image
from server.infotext import file_texts
from server.job import Job
from server.pipeline import Pipeline
from server.rows import Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Latent:
    """A finished job, its latent (c, h, w), and when it was finished."""

    job: Job
    values: Array
    finished: float


class Decoder:
    """One thread that decodes and encodes what the loop has finished.

    Args:
        images: of one VAE decoder call, at most.
        clock: seconds.
    """

    def __init__(self, pipeline: Pipeline, images: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipeline = pipeline
        self._images = images
        self._clock = clock
        self._inbox: queue.SimpleQueue[Latent | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

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

    def _run(self) -> None:
        held: list[Latent] = []
        open_ = True
        while open_ or held:
            if not held:
                open_ = self._receive(held, block=True)
            while open_ and len(held) < self._images and not self._inbox.empty():
                open_ = self._receive(held, block=False)
            if held:
                first = held[0].values.shape
                together = [latent for latent in held if latent.values.shape == first]
                held = [latent for latent in held if latent.values.shape != first]
                self.decode(together)

    def _receive(self, held: list[Latent], *, block: bool) -> bool:
        latent = self._inbox.get(block)
        if latent is not None:
            held.append(latent)
        return latent is not None

    def decode(self, latents: list[Latent]) -> None:
        """Decode latents of one size together and hand each image to its reply."""
        finite = []
        for latent in latents:
            if np.isfinite(latent.values).all():
                finite.append(latent)
            else:
                latent.job.reply.fail(ServerError("the latent is not finite: the UNet overflowed; try other settings"))
        if not finite:
            return
        try:
            pictures = self._pipeline.decode(np.stack([latent.values for latent in finite]))
        except Exception as error:  # whatever a runner raises; every client must be answered
            logger.exception("decoding %d latents failed", len(finite))
            for latent in finite:
                latent.job.reply.fail(ServerError(f"decoding failed: {error}"))
            return
        for latent, pixels in zip(finite, pictures, strict=True):
            job = latent.job
            try:
                notes = file_texts(job.request, job.index, self._pipeline.spec.checkpoint)
                data = encode_image(pixels, job.request.output_format, job.request.encoding, notes)
            except Exception as error:  # whatever Pillow raises; the other clients must be answered
                logger.exception("encoding an image failed")
                job.reply.fail(ServerError(f"encoding the image failed: {error}"))
                continue
            job.reply.add_image(job.index, data, self._timing(latent))

    def _timing(self, latent: Latent) -> dict[str, float]:
        job = latent.job
        return {
            "queue_seconds": job.started - job.arrival,
            "denoise_seconds": latent.finished - job.started,
            "decode_seconds": self._clock() - latent.finished,
            "unet_rows": job.work.rows,
            "unet_calls": job.call_share,
        }
