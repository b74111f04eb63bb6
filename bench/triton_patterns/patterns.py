"""The two patterns as Triton configurations, and a tritonserver with one of them.

`serial` is Triton's tutorial on Stable Diffusion as it ships (triton-inference-server/tutorials, Popular_Models_Guide/
StableDiffusion): `max_batch_size: 1`, a queue delay of 100 ms, every request to its end before the next. `static` is
the same with batches: as many as eight wait for one another for as long, are drawn to their end, and are answered
together; those of different steps one after the other, which is what pytriton's example does with
`group_by_values`. There, steps, guidance and sampler belong to the model; here every request brings its own, so that
one engine serves a mix: that is to the patterns' advantage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from server.async_client import AsyncClient
from server.config import ServerConfig
from server.fields import FIELD_BY_NAME
from server.launch import TritonServer
from server.repository import OUTPUTS

ENTRY = '"""Triton\'s entry point of a pattern."""\n\nfrom bench.triton_patterns.model import TritonPythonModel\n'
# All of them come with every request: Triton batches no requests together that have different inputs.
INPUTS = (
    *("prompt", "num_inference_steps", "guidance_scale", "seed", "sampler", "timestep_spacing"),
    *("height", "width", "output_format"),
)
DELAY_MICROSECONDS = 100_000


@dataclass(frozen=True, slots=True)
class Pattern:
    """How Triton hands requests to `execute()`.

    Attributes:
        max_batch_size: requests at a time.
        delay_microseconds: that a request waits for company.
    """

    name: str
    max_batch_size: int
    delay_microseconds: int = DELAY_MICROSECONDS

    def config(self, deployment: str) -> str:
        """`config.pbtxt`, with a deployment as JSON."""
        inputs = ", ".join(_tensor(name, FIELD_BY_NAME[name].datatype) for name in INPUTS)
        outputs = ", ".join(_tensor(name, "STRING") for name in OUTPUTS)
        return (
            f'name: "{self.name}"\nbackend: "python"\nmax_batch_size: {self.max_batch_size}\n'
            f"dynamic_batching {{ max_queue_delay_microseconds: {self.delay_microseconds} }}\n"
            f"input [ {inputs} ]\noutput [ {outputs} ]\ninstance_group [ {{ kind: KIND_CPU count: 1 }} ]\n"
            f'parameters {{ key: "deployment" value {{ string_value: {json.dumps(deployment)} }} }}\n'
        )


PATTERNS: Mapping[str, Pattern] = {
    "triton_serial": Pattern("triton_serial", 1),
    "triton_static": Pattern("triton_static", 8),
}


class PatternServer(TritonServer):
    """A tritonserver with one pattern as its only model; see `TritonServer`."""

    def __init__(self, pattern: Pattern, config: ServerConfig, log: Path | None = None) -> None:
        # While a picture is decoded nothing else is computed, so the decoder may have all cores.
        threads = len(os.sched_getaffinity(0))
        super().__init__(replace(config, component_threads=threads, max_rows=2 * pattern.max_batch_size), log=log)
        self.pattern = pattern

    @property
    def models(self) -> list[str]:
        return [self.pattern.name]

    def write_models(self, target: Path) -> None:
        folder = target / self.pattern.name / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(ENTRY, encoding="utf-8")
        (folder.parent / "config.pbtxt").write_text(self.pattern.config(self.config.to_json()), encoding="utf-8")

    def client(self) -> AsyncClient:
        """For one event loop."""
        return AsyncClient(self.grpc_url, self.pattern.name, batched=True)


def _tensor(name: str, datatype: str) -> str:
    return f'{{ name: "{name}" data_type: TYPE_{datatype} dims: [ 1 ] }}'
