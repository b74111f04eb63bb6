"""Requests drawn to completion, those of equal steps in lock step: all that a pattern without a loop can do.

Tables, noise, embeddings, rows and engines are the server's, so a picture is the same to the bit, and what differs is
when its calls are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server.checkpoints import Checkpoints
from server.errors import ServerError
from server.image import Pixels
from server.job import Batch, Bucket, Job
from server.picture_files import PictureLimits
from server.preparation import Preparation
from server.reply import Reply
from server.request import Request
from server.rows import BucketState


class Unheard:
    """Who is told of a job that nobody asks about."""

    def progress(self, event: Mapping[str, Any]) -> None: ...

    def preview(self, event: Mapping[str, Any], data: bytes) -> None: ...

    def image(self, event: Mapping[str, Any], data: bytes) -> None: ...

    def finish(self, images: list[bytes], metadata: Mapping[str, Any]) -> None: ...

    def fail(self, error: ServerError) -> None: ...


class Lockstep:
    """Draws requests of one image and one pass, by whom they may be drawn together.

    Args:
        checkpoints: what is served, all components in this process.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._preparation = Preparation(checkpoints, PictureLimits())

    def parse(self, tensors: Mapping[str, Sequence[object]]) -> Request:
        """A request to the default checkpoint.

        Raises:
            InvalidRequest: it is at fault.
        """
        request = Request.parse(tensors, self._checkpoints.limits(self._checkpoints.default.name))
        self._preparation.tables(request)
        return request

    def draw(self, requests: Sequence[Request]) -> list[Pixels]:
        """The picture of each, (h, w, 3), in order; one after the other those that cannot go in lock step.

        Raises:
            InvalidRequest: a prompt that cannot be encoded.
            EngineError: a call that failed.
        """
        groups: dict[tuple[Bucket, int], list[tuple[int, Job]]] = {}
        for place, request in enumerate(requests):
            work = self._preparation.works(request)[0][0]
            job = Job(request, 0, work, Reply(request, Unheard(), lambda reply: None), 0.0)
            groups.setdefault((work.bucket, job.calls), []).append((place, job))
        found: dict[int, Pixels] = {}
        for (bucket, calls), members in groups.items():
            pictures = self._together(bucket, calls, [job for _, job in members])
            found |= {place: picture for (place, _), picture in zip(members, pictures, strict=True)}
        return [found[place] for place in range(len(requests))]

    def _together(self, bucket: Bucket, calls: int, jobs: Sequence[Job]) -> Pixels:
        """(jobs, h, w, 3)."""
        pipeline = self._checkpoints[bucket.checkpoint]
        shape = pipeline.latent_shape(bucket.height, bucket.width)
        state = BucketState(len(jobs), shape, (), pipeline.extra_channels, pipeline.labelled)
        for job in jobs:
            state.join(job)
        for _ in range(calls):
            call = state.call(Batch(bucket, tuple(jobs)))
            output = pipeline.denoise(state.feeds(call))
            if call.draws:
                state.draw(call)
            state.advance(call, output)
            for job in jobs:
                job.step_index += 1
        return pipeline.decode(np.stack([state.latent(job) for job in jobs]))
