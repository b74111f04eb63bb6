"""The Triton Python model of both patterns; how many requests `execute()` is handed is Triton's to decide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as triton

from bench.triton_patterns.lockstep import Lockstep
from engines.errors import EngineError
from server.checkpoints import open_checkpoints
from server.errors import InvalidRequest, ServerError
from server.image import Pixels, encode_image
from server.request import Request
from server.triton_io import deployment, failure, settle, text_tensor, values
from server.warm_up import warm_up


class TritonPythonModel:
    """Answers what it is handed when all of it is drawn, as `execute()` of a model without threads does."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = deployment(args)
        checkpoints = open_checkpoints(config)
        for pipeline in checkpoints.values():
            warm_up(pipeline, config)
        self._lockstep = Lockstep(checkpoints)
        settle()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        parsed = [self._parsed(request) for request in requests]
        good = [request for request in parsed if isinstance(request, Request)]
        try:
            pictures = iter(self._lockstep.draw(good))
        except (ServerError, EngineError) as error:
            return [failure(ServerError(str(error)))] * len(requests)
        return [failure(one) if isinstance(one, ServerError) else _answer(one, next(pictures)) for one in parsed]

    def _parsed(self, request: Any) -> Request | InvalidRequest:
        try:
            return self._lockstep.parse(values(request))
        except InvalidRequest as error:
            return error


def _answer(request: Request, picture: Pixels) -> Any:
    data = encode_image(picture, request.output_format, request.encoding, {})
    metadata = {"request": {"output_format": request.output_format}, "sizes": [picture.shape[:2]]}
    tensors = [text_tensor("images", [data]), text_tensor("metadata", [json.dumps(metadata).encode()])]
    # Triton gives a model with a batch dimension one line of it for each request.
    return triton.InferenceResponse([triton.Tensor(t.name(), t.as_numpy().reshape(1, -1)) for t in tensors])
