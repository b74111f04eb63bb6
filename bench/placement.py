"""What it costs to run a component as a Triton model of its own instead of in the loop's process.

One server for each placement, all running at once and asked in turn, so that whatever else the machine does meets all
of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.reporting.measures import Measure, Plot, distribution, told
from bench.serving import started
from engines.component import PipelineSpec
from server.client import Client
from server.config import Placement, ServerConfig
from server.errors import ServerError

COMPONENTS = ("text_encoder", "unet", "vae_decoder")
IN_PROCESS: Placement = "in_process"
WARM_UP = 2


@dataclass(slots=True)
class Seconds:
    """Of each request: from sending to answer, from arrival to the first UNet call, of one UNet call, of decoding."""

    image: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    parser.add_argument("--provider", default="auto", help="auto, cpu, openvino, cuda, tensorrt, or fake")
    parser.add_argument("--repeats", type=int, default=30, help="requests to each server")
    parser.add_argument("--images", type=int, default=1, help="of one request; each is two rows of every UNet call")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the servers' messages")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Medians in milliseconds for each placement, and their ratios to all components in process.

    Raises:
        ServerError: numbers that are none, or a server that does not start.
    """
    if min(options.repeats, options.steps, options.images) < 1:
        raise ServerError("--repeats, --steps and --images must be at least 1")
    model = options.model.resolve()
    PipelineSpec.read(model)
    rows = 2 * options.images
    base = ServerConfig(
        model=model,
        provider=options.provider,
        max_rows=rows,
        # Every call takes all images of a request, however long such a call is found to take.
        batch_sizes=(rows,),
        text_encoder=IN_PROCESS,
        unet=IN_PROCESS,
        vae_decoder=IN_PROCESS,
    )
    moved: dict[str, dict[str, Any]] = {name: {name: "triton"} for name in COMPONENTS}
    configs = {IN_PROCESS: base, **{name: replace(base, **change) for name, change in moved.items()}}
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(started(config, options.out / f"placement-{name}.log"))
            for name, config in configs.items()
        }
        # gRPC is in the way of starting processes, so there is no client before all servers run.
        clients = {name: stack.enter_context(Client(server.grpc_url)) for name, server in servers.items()}
        found = _asked_in_turn(clients, options.images, options.steps, options.repeats)
    names = ("steps", "images", "repeats", "provider")
    return {
        "placements": summary(found),
        **told(*figures(found)),
        "settings": {name: getattr(options, name) for name in names},
    }


def _asked_in_turn(clients: Mapping[str, Client], images: int, steps: int, repeats: int) -> dict[str, Seconds]:
    seconds = {name: Seconds() for name in clients}
    for turn in range(-WARM_UP, repeats):
        # A prompt that was encoded before would not be encoded again.
        prompt = f"a red circle on a blue background {turn}"
        for name, client in clients.items():
            begun = time.perf_counter()
            result = client.generate(prompt=prompt, seed=1, num_inference_steps=steps, num_images=images)
            taken = time.perf_counter() - begun
            if turn >= 0:
                _note(seconds[name], taken, result.metadata["timing"], steps)
    return seconds


def _note(seconds: Seconds, image: float, timing: Mapping[str, float], steps: int) -> None:
    seconds.image.append(image)
    seconds.before.append(timing["queue_seconds"])
    seconds.step.append(timing["denoise_seconds"] / steps)
    seconds.after.append(timing["decode_seconds"])


def summary(seconds: Mapping[str, Seconds]) -> dict[str, dict[str, float]]:
    """For each placement: medians, and those of a request and a step over the ones in process."""
    own = seconds[IN_PROCESS]
    return {
        name: {
            "request_ms": _median(one.image),
            "step_ms": _median(one.step),
            "before_first_step_ms": _median(one.before),
            "decode_ms": _median(one.after),
            "request_ratio": _ratio(one.image, own.image),
            "step_ratio": _ratio(one.step, own.step),
        }
        for name, one in seconds.items()
    }


def figures(seconds: Mapping[str, Seconds]) -> tuple[list[Measure], list[Plot]]:
    """Of each placement: a request, a step, and both over those that were asked in process in the same turn."""
    own = seconds[IN_PROCESS]
    measures = []
    for name, one in seconds.items():
        for what, ours, theirs in (("request", one.image, own.image), ("UNet call", one.step, own.step)):
            measures.append(Measure.median(f"{what}, {name}", [1e3 * s for s in ours], "ms", "lower"))
            if name != IN_PROCESS:
                ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
                measures.append(Measure.median(f"{what}, {name} over in process", ratios, "", "lower"))
    lines = {name: distribution([1e3 * s for s in one.image]) for name, one in seconds.items()}
    return measures, [Plot("A request, by what is a Triton model of its own", "histogram", "ms", "requests", lines)]


def _median(seconds: Sequence[float]) -> float:
    return round(1e3 * statistics.median(seconds), 3)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(ours) / statistics.median(theirs), 3)
