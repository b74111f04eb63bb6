"""Previews of running jobs: a small JPEG of the clean latent that a step says is coming, without the VAE.

The colours are a linear map of the latent, which the export has fitted to the checkpoint's own VAE.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.component import PipelineSpec
from server.image import Pixels, in_encoding, to_pixels
from server.job import Job

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
Deliver = Callable[[Job, int, bytes], None]

MAX_SIDE = 256
MAX_BYTES = 20_000
QUALITIES = (85, 70, 50, 30, 10)
# Latents of pictures are below 10; more would only overflow.
LARGEST = 1e3
PENDING_LIMIT = 256
# The thread is a daemon: a client that does not take its preview must not hold up the end of the server.
CLOSE_SECONDS = 2.0


class PreviewProjection:
    """Latents of one checkpoint to small pictures."""

    def __init__(self, spec: PipelineSpec) -> None:
        self._matrix = np.array(spec.preview.matrix, np.float32).T.copy()  # (3, c)
        self._bias = np.array(spec.preview.bias, np.float32)[:, None]
        self._downscale = spec.downscale

    def rgb(self, latent: Array) -> Pixels:
        """(c, h, w) in the UNet's scale to (h, w, 3) uint8; what is not a number counts as 0."""
        channels, height, width = latent.shape
        values = np.nan_to_num(np.clip(latent.reshape(channels, -1), -LARGEST, LARGEST), copy=False)
        colours = self._matrix @ values + self._bias
        pixels: Pixels = to_pixels(colours.reshape(1, 3, height, width))[0]
        return pixels

    def encode(self, latent: Array) -> bytes:
        """A JPEG of at most `MAX_BYTES`, as large as the picture will be but no side above `MAX_SIDE`."""
        picture = Image.fromarray(self.rgb(latent))
        longest = max(picture.size)
        scale = min(MAX_SIDE, longest * self._downscale) / longest
        width, height = (max(1, round(side * scale)) for side in picture.size)
        return _jpeg(picture.resize((width, height), Image.Resampling.BICUBIC))


def _jpeg(picture: Image.Image) -> bytes:
    """In the best quality that fits; half as large where none does."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        if stream.tell() <= MAX_BYTES:
            return stream.getvalue()
    return _jpeg(picture.reduce(2))


@dataclass(frozen=True, slots=True)
class _Pending:
    job: Job
    projection: PreviewProjection
    clean_latent: Array
    step: int


class Previewer:
    """One thread that encodes previews; of an image that it has not come to yet it keeps only the newest.

    Args:
        projections: by checkpoint.
        deliver: is handed each job with its step and its JPEG, on the thread.
        limit: images that may wait; the one that has waited longest goes first when there are more.
    """

    def __init__(
        self, projections: Mapping[str, PreviewProjection], deliver: Deliver, limit: int = PENDING_LIMIT
    ) -> None:
        self._projections = projections
        self._deliver = deliver
        self._limit = limit
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="preview", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job, clean_latent: Array, step: int) -> None:
        """Show this soon, unless something newer comes first; returns at once.

        Args:
            clean_latent: (c, h, w), kept and not copied: nobody may write to it from here on.
            step: of the job, for `deliver`.
        """
        if job.reply.answered:
            return
        projection = self._projections[job.work.checkpoint]
        with self._changed:
            if self._closed:
                return
            # In the older one's place in the line: at the end, images of short steps would never have their turn.
            self._pending[id(job.reply), job.index] = _Pending(job, projection, clean_latent, step)
            if len(self._pending) > self._limit:
                del self._pending[next(iter(self._pending))]
            self._changed.notify()

    def close(self) -> None:
        """Drop what is waiting and stop; waits `CLOSE_SECONDS` at most for a delivery."""
        with self._changed:
            self._closed = True
            self._pending.clear()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (pending := self._next()) is not None:
            try:
                self._show(pending)
            except Exception:  # whatever Pillow or the client's sink raises; the other clients want theirs
                logger.exception("a preview of image %d failed", pending.job.index)

    def _next(self) -> _Pending | None:
        """The one that has waited longest; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            return None if self._closed else self._pending.pop(next(iter(self._pending)))

    def _show(self, pending: _Pending) -> None:
        if pending.job.reply.answered:
            return
        data = in_encoding(pending.projection.encode(pending.clean_latent), pending.job.request.encoding)
        if not pending.job.reply.answered:
            self._deliver(pending.job, pending.step, data)
