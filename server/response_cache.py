"""Answers that are kept for requests that come again with the same seed."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from server.request import Request

Answer: TypeAlias = tuple[list[bytes], Mapping[str, Any]]

# What is about the way of a request only, and what it is without.
WAY: Mapping[str, Any] = {
    "priority": 0,
    "timeout_ms": 0,
    "progress_interval": 0,
    "preview_interval": 0,
    "partial_result": 0,
    "client_id": "",
    "request_id": "",
}


class ResponseCache:
    """The answers given last, up to so many bytes of images. Thread-safe.

    Args:
        limit: bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._answers: OrderedDict[Request, Answer] = OrderedDict()
        self._bytes = 0

    def get(self, request: Request) -> Answer | None:
        """What was answered to a request for the same images, with `cached` in the metadata."""
        with self._lock:
            found = self._answers.get(_key(request))
            if found is None:
                return None
            self._answers.move_to_end(_key(request))
        images, metadata = found
        # Who asked first is none of the others' business.
        own = {name: getattr(request, name) for name in WAY}
        return images, {**metadata, "request": {**metadata.get("request", {}), **own}, "cached": True}

    def put(self, request: Request, answer: Answer) -> None:
        """Keep a whole answer; the oldest make room for it."""
        key = _key(request)
        size = _size(key, answer)
        if size > self._limit:
            return
        with self._lock:
            if key in self._answers:
                return
            self._answers[key] = answer
            self._bytes += size
            while self._bytes > self._limit:
                self._bytes -= _size(*self._answers.popitem(last=False))

    def wants(self, request: Request, *, seeded: bool) -> bool:
        """Whether an answer may be kept: images by one message, drawn from seeds that the client chose."""
        return bool(self._limit) and seeded and not request.stream_images


def _size(request: Request, answer: Answer) -> int:
    images, metadata = answer
    return request.picture_bytes + sum(map(len, images)) + len(json.dumps(metadata))


def _key(request: Request) -> Request:
    return replace(request, **WAY)
