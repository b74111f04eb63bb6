"""How long each component takes by itself, over rows and sizes, and how much of the machine's speed that is.

Operations are counted from the graph; the machine's peak is a large matrix product by the same provider, in the same
precision. What is missing to it went into all that is not a product: norms, softmax, moving data.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.flops import Sizes, operations, peak_flops
from engines.component import Component, PipelineSpec
from engines.errors import EngineError
from engines.picture import Case, feeds
from engines.profiles import depends_on_resolution, latent_sides
from engines.providers import Settings, default_cache
from engines.runner import Runner, chosen_provider, open_runner
from engines.verify import arithmetic

# Side of the blocks that an exported graph counts a latent in.
BLOCK = 8
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Timing:
    """Of calls of one kind.

    Attributes:
        spread: between the slowest and the quickest, in medians.
        first_ms: of the first call, which may compile.
        tflops: that were multiplied in a second; `share` of the machine's peak.
        resident_mb: of the process afterwards.
    """

    component: str
    size: str
    rows: int
    median_ms: float
    spread: float
    first_ms: float
    tflops: float
    share: float
    resident_mb: int


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    parser.add_argument("--provider", default="auto", help="auto, or a name of `server launch --provider`")
    parser.add_argument("--component", action="append", default=[], help="repeat for more (default: all)")
    parser.add_argument("--rows", default="1,2,4", help="of a call, such as 1,2,4 (default: %(default)s)")
    parser.add_argument("--sizes", default="", help="in pixels, such as 512,768 (default: all of the export)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each kind")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: one per core")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """A timing for each component, size and number of rows.

    Raises:
        EngineError: numbers that are none, or something that cannot be loaded or run.
    """
    spec = PipelineSpec.read(options.model)
    rows, sizes = numbers(options.rows, "--rows"), chosen_sizes(options.sizes, spec)
    if options.repeats < 1:
        raise EngineError("--repeats must be at least 1")
    provider = chosen_provider(options.provider)
    settings = Settings(threads=options.threads, cache=default_cache())
    peaks: dict[str, float] = {}
    timings = []
    for name in options.component or spec.components:
        component = spec.component(name)
        precision = arithmetic(provider, component, settings)
        if precision not in peaks:
            with tempfile.TemporaryDirectory() as folder:
                # OpenVINO takes an fp32 graph to bf16 by itself.
                graph = "fp32" if provider.startswith("openvino") else precision
                peaks[precision] = peak_flops(provider, graph, Settings(threads=options.threads), Path(folder))
        runner = open_runner(component, options.model, provider, settings)
        for size in sizes if depends_on_resolution(component) else sizes[:1]:
            for count in rows:
                case = Case(size, 0, count)
                timings.append(_timing(runner, spec, case, options.model, options.repeats, peaks[precision]))
    found = {name: round(peak / 1e12, 3) for name, peak in peaks.items()}
    return {
        "checkpoint": spec.checkpoint,
        "fingerprint": spec.fingerprint,
        "provider": provider,
        "peak_tflops": found,
        "timings": [asdict(timing) for timing in timings],
    }


def _timing(runner: Runner, spec: PipelineSpec, case: Case, folder: Path, repeats: int, peak: float) -> Timing:
    component = runner.component
    fed = feeds(component, spec, case, case.rows)
    first, *seconds = timed(lambda: runner.infer(fed), repeats + 1)
    median = statistics.median(seconds)
    flops = component_flops(component, spec, case, folder)
    return Timing(
        component=component.name,
        size="x".join(map(str, case.resolution)),
        rows=case.rows,
        median_ms=round(1e3 * median, 2),
        spread=round((max(seconds) - min(seconds)) / median, 3),
        first_ms=round(1e3 * first, 2),
        tflops=round(flops / median / 1e12, 4),
        share=round(flops / median / peak, 3),
        resident_mb=resident_bytes() >> 20,
    )


def component_flops(component: Component, spec: PipelineSpec, case: Case, folder: Path) -> int:
    """Operations of one call."""
    height, width = latent_sides(case.resolution, spec.downscale)
    sizes = Sizes(case.rows, spec.context_length, height * width / BLOCK**2)
    return operations(folder / component.file, sizes).total()


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of some calls, one after the other."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def resident_bytes() -> int:
    """Of this process, 0 where the kernel does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * PAGE if status.exists() else 0


def numbers(text: str, option: str) -> list[int]:
    """`1,2,4` as numbers.

    Raises:
        EngineError: it is none.
    """
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise EngineError(f"{option} {text} is no list of numbers; write such as 1,2,4")
    return [int(part) for part in parts]


def chosen_sizes(text: str, spec: PipelineSpec, option: str = "--sizes") -> Sequence[tuple[int, int]]:
    """The export's resolutions that are named by their height; all where none is.

    Raises:
        EngineError: the export has none of that height.
    """
    if not text:
        return spec.resolutions
    heights = numbers(text, option)
    found = [(height, width) for height, width in spec.resolutions if height in heights]
    if len({height for height, _ in found}) < len(set(heights)):
        there = ", ".join(f"{height}x{width}" for height, width in spec.resolutions)
        raise EngineError(f"{option} {text}: the export is for {there}; export with --resolution")
    return found
