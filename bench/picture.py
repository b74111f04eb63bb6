"""What a whole picture takes through Triton, over the engine calls that it is made of."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.reporting.measures import Measure, told
from bench.serving import started
from bench.traffic.scrape import Samples, read_metrics, total
from server.client import Client
from server.config import ServerConfig
from server.errors import ServerError

# Seconds of engine calls, as the server counts them; a text encoder's are not counted and so are part of the overhead.
CALLS = ("step_seconds", "decode_seconds")
SETTLE_SECONDS = 5.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    parser.add_argument("--provider", default="auto", help="auto, or a name of `server launch --provider`")
    parser.add_argument("--size", type=int, help="in pixels, such as 512 (default: the first of the export)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="pictures timed, one after the other")
    parser.add_argument("--log", type=Path, default=Path("out/triton.log"), help="file for the server's messages")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of start-up, of each picture and of its calls, and the overhead as a part of the latter.

    Raises:
        ServerError: numbers that are none, or a server that does not start.
    """
    if min(options.steps, options.repeats) < 1:
        raise ServerError("--steps and --repeats must be at least 1")
    begun = time.perf_counter()
    with started(ServerConfig(model=options.model.resolve(), provider=options.provider), options.log) as server:
        start = time.perf_counter() - begun
        size = {} if options.size is None else {"height": options.size, "width": options.size}
        with Client(server.grpc_url) as client:
            fields = {**size, "num_inference_steps": options.steps}
            # The first one of a size waits for whatever is made for it once.
            client.generate(prompt="warm up", seed=0, **{**fields, "num_inference_steps": 1})
            pictures = []
            before = _counted(server.metrics_url, calls=1, pictures=1)
            for i in range(options.repeats):
                whole = _drawn(client, i, fields)
                after = _counted(server.metrics_url, calls=1 + (i + 1) * options.steps, pictures=2 + i)
                pictures.append((whole, _call_seconds(after) - _call_seconds(before)))
                before = after
    overheads = [whole / calls - 1 for whole, calls in pictures]
    measures = [
        Measure("start of the server", start, "s", "lower"),
        Measure.median("picture", [whole for whole, _ in pictures], "s", "lower"),
        Measure.median("engine calls of a picture", [calls for _, calls in pictures], "s", "lower"),
        Measure.median("what is not engine calls, over them", overheads, "", "lower"),
    ]
    return {
        "start_seconds": round(start, 2),
        "picture_seconds": [round(whole, 3) for whole, _ in pictures],
        "call_seconds": [round(calls, 3) for _, calls in pictures],
        "overhead": round(statistics.median(overheads), 4),
        **told(measures),
        "settings": {name: getattr(options, name) for name in ("provider", "size", "steps", "repeats")},
    }


def _drawn(client: Client, index: int, fields: Mapping[str, int]) -> float:
    """Seconds of a picture."""
    begun = time.perf_counter()
    # A prompt that was encoded before would not be encoded again.
    client.generate(prompt=f"a red circle on a blue background {index}", seed=index, **fields)
    return time.perf_counter() - begun


def _call_seconds(samples: Samples) -> float:
    return sum(total(samples, name, "_sum") for name in CALLS)


def _counted(url: str, calls: int, pictures: int) -> Samples:
    """The metrics once they count so much: they are exported a little later than the answer is sent.

    Raises:
        ServerError: they never do.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        samples = read_metrics(url)
        counts = [total(samples, name, "_count") for name in CALLS]
        if counts[0] >= calls and counts[1] >= pictures:
            return samples
        time.sleep(0.1)
    raise ServerError(f"the metrics at {url} count {counts} calls after {calls} of the UNet and {pictures} pictures")
