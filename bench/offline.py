"""How long each component takes by itself, over rows and sizes, and how much of the machine's speed that is.

Operations are counted from the graph; the machine's peak is of large matrix products by the same provider, in the same
precision, taken between the calls, so that both meet the same machine. What is missing to it went into all that is not
a product: norms, softmax, moving data.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.flops import Product, Sizes, operations
from bench.memory import Memory
from bench.reporting.measures import Measure, Plot, told
from bench.traffic.mix_options import listed
from engines.component import Component, PipelineSpec
from engines.errors import EngineError
from engines.picture import Case, feeds
from engines.profiles import depends_on_resolution, latent_sides
from engines.providers import Settings, default_cache
from engines.runner import Runner, chosen_provider, open_plans, open_runner
from engines.verify import arithmetic

# Side of the blocks that an exported graph counts a latent in.
BLOCK = 8
# Calls between two measurements of the peak; each group begins with a call that is not counted, for the caches.
GROUP = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """Of calls of one kind.

    Attributes:
        spread: between the slowest and the quickest, in medians.
        first_ms: of the first call, which may compile.
        tflops: that were multiplied in a second; `share` of the machine's peak.
        peak_tflops: of the products between these calls.
        resident_mb: of the host's memory, by the process afterwards.
        loaded_mb: by how much the process has grown since before its component was loaded.
        device_mb: by how much what is used of all GPUs' memory has grown since then; None where the component is
            computed elsewhere, or no driver tells.
    """

    component: str
    size: str
    rows: int
    median_ms: float
    spread: float
    first_ms: float
    tflops: float
    share: float
    peak_tflops: float
    resident_mb: int
    loaded_mb: int
    device_mb: int | None

    @property
    def name(self) -> str:
        return f"{self.component} {self.size} x{self.rows}"


@dataclass(frozen=True, slots=True)
class Timed:
    """A timing and the calls that it is made of.

    Attributes:
        seconds: of each call.
        shares: of the peak that was measured next to each call.
    """

    timing: Timing
    seconds: Sequence[float]
    shares: Sequence[float]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    parser.add_argument("--provider", default="auto", help="auto, or a name of `server launch --provider`")
    parser.add_argument("--plans", action="store_true", help="run DIR/plans by that provider, not the exported files")
    parser.add_argument("--component", action="append", default=[], help="repeat for more (default: all)")
    parser.add_argument("--rows", type=listed(int), default=(1, 2, 4), help="of a call (default: 1,2,4)")
    parser.add_argument(
        "--sizes", type=listed(int), default=(), help="in pixels, such as 512,768 (default: all of the export)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each kind")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: one per core")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """A timing for each component, size and number of rows.

    What fails after the first was timed is told in `failures`, beside what there is.

    Raises:
        EngineError: numbers that are none, or something that cannot be loaded or run.
    """
    spec = PipelineSpec.read(options.model)
    rows, sizes = options.rows, chosen_sizes(options.sizes, spec)
    if min(*rows, options.repeats) < 1:
        raise EngineError("--rows and --repeats must be at least 1")
    for name in options.component:
        spec.component(name)
    bench = Bench(options, spec)
    found: list[Timed] = []
    ended: dict[str, Any] = {}
    try:
        for name in options.component or spec.components:
            component = spec.component(name)
            kinds = [
                (size, count) for size in (sizes if depends_on_resolution(component) else sizes[:1]) for count in rows
            ]
            found.extend(bench.timings(component, kinds))
    except (EngineError, KeyboardInterrupt) as error:
        if not found:
            raise
        ended = {"partial": True, "failures": [str(error) or "interrupted"]}
    return {
        "checkpoint": spec.checkpoint,
        "fingerprint": spec.fingerprint,
        "provider": bench.provider,
        "plans": options.plans,
        "peak_tflops": bench.peaks(),
        "timings": [asdict(one.timing) for one in found],
        **ended,
        **told(list(_measures(found)), list(_plots(found))),
    }


class Bench:
    """Times components of an export, with the peak of their precision between the calls."""

    def __init__(self, options: argparse.Namespace, spec: PipelineSpec) -> None:
        self.provider = chosen_provider(options.provider, plans=options.plans)
        self._options, self._spec = options, spec
        self._settings = Settings(threads=options.threads, cache=default_cache())
        self._products: dict[str, Product] = {}

    def peaks(self) -> dict[str, float]:
        """Of each precision the most that was seen, in TFLOP/s."""
        return {name: round(product.best / 1e12, 3) for name, product in self._products.items()}

    def timings(self, component: Component, kinds: Sequence[tuple[tuple[int, int], int]]) -> Iterator[Timed]:
        """Of calls with these resolutions and rows, one after the other."""
        product = self._product(component)
        gc.collect()
        before = Memory.now(self.provider)
        runner = self._opened(component, [size for size, _ in kinds])
        for size, rows in kinds:
            yield self._timed(runner, Case(size, 0, rows), product, before)

    def _opened(self, component: Component, sizes: Sequence[tuple[int, int]]) -> Runner:
        folder = self._options.model
        if not self._options.plans:
            return open_runner(component, folder, self.provider, self._settings)
        # Plans of other sizes would take memory, and need not be there.
        asked = replace(self._spec, resolutions=tuple(dict.fromkeys(sizes)))
        return open_plans(component, asked, folder, self.provider, self._settings)

    def _product(self, component: Component) -> Product:
        precision = arithmetic(self.provider, component, self._settings)
        if precision not in self._products:
            # OpenVINO takes an fp32 graph to bf16 by itself.
            graph = "fp32" if precision == "bf16" and self.provider.startswith("openvino") else precision
            with tempfile.TemporaryDirectory() as folder:
                settings = Settings(threads=self._options.threads)
                self._products[precision] = Product(self.provider, graph, settings, Path(folder))
        return self._products[precision]

    def _timed(self, runner: Runner, case: Case, product: Product, before: Memory) -> Timed:
        component = runner.component
        fed = feeds(component, self._spec, case, case.rows)
        flops = component_flops(component, self._spec, case, self._options.model)
        (first,) = timed(lambda: runner.infer(fed), 1)
        seconds: list[float] = []
        peaks: list[float] = []
        while len(seconds) < self._options.repeats:
            group = min(GROUP, self._options.repeats - len(seconds))
            at_first = product.flops()
            seconds += timed(lambda: runner.infer(fed), group + 1)[1:]
            peaks += [max(at_first, product.flops())] * group
        shares = [flops / one / peak for one, peak in zip(seconds, peaks, strict=True)]
        median = statistics.median(seconds)
        memory = Memory.now(self.provider)
        grown = memory.since(before)
        timing = Timing(
            component=component.name,
            size="x".join(map(str, case.resolution)),
            rows=case.rows,
            median_ms=round(1e3 * median, 4),
            spread=round((max(seconds) - min(seconds)) / median, 3),
            first_ms=round(1e3 * first, 2),
            tflops=round(flops / median / 1e12, 4),
            share=round(statistics.median(shares), 3),
            peak_tflops=round(max(peaks) / 1e12, 3),
            resident_mb=round(memory.host),
            loaded_mb=round(grown.host),
            device_mb=None if grown.device is None else round(grown.device),
        )
        return Timed(timing, seconds, shares)


def _measures(found: Sequence[Timed]) -> Iterator[Measure]:
    for one in found:
        name = one.timing.name
        yield Measure.median(f"{name}: call", [1e3 * seconds for seconds in one.seconds], "ms", "lower")
        yield Measure.median(f"{name}: share of the peak", one.shares, "", "higher")
        yield Measure(f"{name}: speed", one.timing.tflops, "TFLOP/s", "higher")
        yield Measure(f"{name}: host memory", one.timing.loaded_mb, "MB", "lower")
        if one.timing.device_mb is not None:
            yield Measure(f"{name}: device memory", one.timing.device_mb, "MB", "lower")


def _plots(found: Sequence[Timed]) -> Iterator[Plot]:
    """Over rows: a plot of times for each component, and one of shares for all."""
    times: dict[str, dict[str, list[tuple[float, float]]]] = {}
    shares: dict[str, list[tuple[float, float]]] = {}
    for one in found:
        timing = one.timing
        points = times.setdefault(timing.component, {}).setdefault(timing.size, [])
        points.append((timing.rows, timing.median_ms))
        shares.setdefault(f"{timing.component} {timing.size}", []).append((timing.rows, timing.share))
    for component, series in times.items():
        yield Plot(f"Time of a call: {component}", "curve", "rows", "milliseconds", series)
    if shares:
        yield Plot("Share of the machine's peak", "curve", "rows", "of the peak in the same precision", shares)


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


def chosen_sizes(heights: Sequence[int], spec: PipelineSpec, option: str = "--sizes") -> Sequence[tuple[int, int]]:
    """The export's resolutions of these heights; all where none is named.

    Raises:
        EngineError: the export has none of a height.
    """
    if not heights:
        return spec.resolutions
    found = [(height, width) for height, width in spec.resolutions if height in heights]
    if missing := set(heights) - {height for height, _ in found}:
        there = ", ".join(f"{height}x{width}" for height, width in spec.resolutions)
        named = ",".join(map(str, sorted(missing)))
        raise EngineError(f"{option} {named}: the export is for {there}; export with --resolution")
    return found
