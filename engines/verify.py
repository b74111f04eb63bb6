"""A provider or plans against the CPU in fp32: each component, and a whole picture. The first thing to run on a GPU.

ONNX Runtime's CPU provider computes fp16 graphs in fp32, with the weights that the graph has, so the export itself is
the reference; `--reference` takes an fp32 export of the same checkpoint instead.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.component import Arrays, Component, PipelineSpec, Precision
from engines.driver import device_capability, this_machine
from engines.errors import ArtefactError, EngineError, ProviderError
from engines.picture import TRAINED_STEPS, Case, context, decode, denoise, feeds
from engines.providers import OPENVINO, Settings, default_cache, openvino_precision
from engines.runner import Runner, chosen_provider, open_plans, open_runner

Opener: TypeAlias = Callable[[Component], Runner]

REFERENCE = "cpu"
STEPS = 20
# In the order in which a picture needs them; others come first.
ORDER = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a precision may differ from fp32.

    Attributes:
        largest, mean: absolute differences of a component's outputs, in units of the reference's standard deviation.
        psnr: of a picture, in dB; 100 means the same pixels.
    """

    largest: float
    mean: float
    psnr: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(largest=1e-2, mean=1e-4, psnr=50.0),
    "fp16": Tolerance(largest=1e-1, mean=5e-3, psnr=30.0),
    "bf16": Tolerance(largest=4e-1, mean=3e-2, psnr=20.0),
    "int8": Tolerance(largest=1.0, mean=6e-2, psnr=20.0),
}
SAME_PIXELS_PSNR = 100.0


@dataclass(slots=True)
class Run:
    """What components gave, and the picture, if one was drawn."""

    outputs: dict[str, Arrays] = field(default_factory=dict)
    picture: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a component's outputs from the reference; see `Tolerance` for the units. Not finite where a value is not."""

    component: str
    precision: Precision
    largest: float
    mean: float

    @property
    def refusal(self) -> str:
        """Why it is not accepted; empty where it is."""
        allowed = TOLERANCES[self.precision]
        if not math.isfinite(self.largest):
            return f"{self.component} gives values that are no numbers"
        if self.largest > allowed.largest or self.mean > allowed.mean:
            return (
                f"{self.component} differs by {self.largest:.1e} at most and {self.mean:.1e} on average, "
                f"{self.precision} may by {allowed.largest:.0e} and {allowed.mean:.0e}"
            )
        return ""


def run_components(spec: PipelineSpec, case: Case, names: list[str], opened: Opener) -> Run:
    """Run each component by itself, and then in its part of a picture; one is loaded at a time."""
    found, texts, latent = Run(), {}, None
    draws = case.steps > 0 and {"unet", "vae_decoder"} <= set(names)
    for name in sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else -1):
        runner = opened(spec.component(name))
        found.outputs[name] = runner.infer(feeds(runner.component, spec, case, case.rows))
        if draws and name.startswith("text_encoder"):
            texts[name] = runner.infer(feeds(runner.component, spec, case, 2))
        if draws and name == "unet":
            latent = denoise(runner, spec, case, context(spec, texts))
        if latent is not None and name == "vae_decoder":
            found.picture = decode(runner, spec, latent)
        # Else its weights would stay until those of the next are loaded.
        del runner
    return found


def difference(component: str, precision: Precision, ours: Arrays, reference: Arrays) -> Difference:
    """Of all outputs of a component the largest difference, and the largest mean.

    Raises:
        ArtefactError: the reference has values that are no numbers.
    """
    largest = mean = 0.0
    for name, expected in reference.items():
        if not np.isfinite(expected).all():
            raise ArtefactError(
                f"the reference itself overflows in {component}; export the checkpoint with --precision fp32, and give "
                "that folder as --reference"
            )
        if not np.isfinite(ours[name]).all():
            return Difference(component, precision, math.inf, math.inf)
        scale = float(expected.std()) or 1.0
        apart = np.abs(ours[name].astype(np.float64) - expected) / scale
        largest, mean = max(largest, float(apart.max())), max(mean, float(apart.mean()))
    return Difference(component, precision, largest, mean)


def psnr(ours: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = float(((ours.astype(np.float64) - reference) ** 2).mean())
    return SAME_PIXELS_PSNR if error == 0 else min(SAME_PIXELS_PSNR, 10 * math.log10(255**2 / error))


def arithmetic(provider: str, component: Component, settings: Settings) -> Precision:
    """What a provider computes a component in."""
    if component.precision == "int8":
        return "int8"
    if provider == REFERENCE:
        return "fp32"
    if provider.startswith(OPENVINO):
        return "bf16" if openvino_precision(settings) == "bf16" else "fp32"
    return component.precision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m engines verify`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="an export")
    parser.add_argument("--provider", default="auto", help="auto, tensorrt, tensorrt_rtx, cuda, openvino ... or cpu")
    parser.add_argument("--plans", action="store_true", help="run DIR/plans by that provider, not the exported files")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="an fp32 export of the same checkpoint")
    parser.add_argument("--component", action="append", default=[], help="repeat for more (default: all)")
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="in pixels (default: the first of the export)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the picture; 0 draws none (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2, help="of each component's call (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: one per core")
    parser.add_argument(
        "--cpu-precision", choices=("f32", "bf16"), default="", help="OpenVINO's, if it is the provider"
    )
    parser.add_argument("--row", type=Path, metavar="FILE", help="add the line for README's table to this file")


def main_verify(options: argparse.Namespace) -> int:
    """Compare, print what was found and a line for README's table; 1 where something is refused.

    Raises:
        EngineError: something is missing or damaged, or a component cannot be run at all.
    """
    spec = PipelineSpec.read(options.folder)
    reference = options.reference or options.folder
    referred = PipelineSpec.read(reference)
    if any(component.precision == "int8" for component in referred.components.values()):
        raise EngineError(f"{reference} is in int8, no reference; give the export it was made of as --reference")
    if referred.fingerprint != spec.fingerprint:
        raise EngineError(f"{reference} is an export of another checkpoint than {options.folder}; give one of the same")
    if options.rows < 1 or not 0 <= options.steps <= TRAINED_STEPS:
        raise EngineError(f"--rows must be at least 1, and --steps 0 to {TRAINED_STEPS}")
    # The same damage on both sides would look like agreement.
    for folder, export in {options.folder: spec, reference: referred}.items():
        export.verify(folder)
    settings = Settings(threads=options.threads, precision=options.cpu_precision, cache=default_cache())
    case = Case(_size(options.size, spec), options.steps, options.rows)
    names = [spec.component(name).name for name in options.component or spec.components]
    # Before the reference takes its minutes.
    chosen = this_machine(options.provider).compiler if options.plans else chosen_provider(options.provider)
    expected = run_components(
        referred, case, names, lambda c: open_runner(c, reference, REFERENCE, Settings(threads=options.threads))
    )

    def opened(component: Component) -> Runner:
        if options.plans:
            return open_plans(component, spec, options.folder, chosen, settings)
        return open_runner(component, options.folder, chosen, settings)

    seen = run_components(spec, case, names, opened)
    found = [
        difference(name, arithmetic(chosen, spec.component(name), settings), seen.outputs[name], expected.outputs[name])
        for name in names
    ]
    similarity = None
    if seen.picture is not None and expected.picture is not None:
        similarity = psnr(seen.picture, expected.picture)
    return _tell(options, spec, case, chosen, found, similarity)


def _size(text: str | None, spec: PipelineSpec) -> tuple[int, int]:
    """Raises EngineError where it is none of the export's."""
    sizes = {f"{height}x{width}": (height, width) for height, width in spec.resolutions}
    sizes |= {str(height): (height, width) for height, width in spec.resolutions if height == width}
    if text is not None and text not in sizes:
        raise EngineError(f"--size {text} is none of the export's; choose one of {', '.join(sizes)}")
    return sizes[text] if text else spec.resolutions[0]


def _tell(
    options: argparse.Namespace,
    spec: PipelineSpec,
    case: Case,
    provider: str,
    found: list[Difference],
    similarity: float | None,
) -> int:
    for one in found:
        verdict = "refused" if one.refusal else "good"
        print(f"{one.component:16} {one.precision}  largest {one.largest:.1e}  mean {one.mean:.1e}  {verdict}")
    refusals = [one.refusal for one in found if one.refusal] + list(_refused_picture(found, similarity))
    if similarity is not None:
        print(f"picture          {case.steps} steps  {similarity:.1f} dB")
    line = row(spec, case, provider + (" plans" if options.plans else ""), found, similarity, refused=bool(refusals))
    print(line)
    if options.row:
        with options.row.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    for refusal in refusals:
        print(f"refused: {refusal}", file=sys.stderr)
    return 1 if refusals else 0


def _refused_picture(found: list[Difference], similarity: float | None) -> Iterator[str]:
    lowest = min(TOLERANCES[one.precision].psnr for one in found)
    if similarity is not None and similarity < lowest:
        yield f"the picture is {similarity:.1f} dB from the reference's, at least {lowest:.0f} are asked for"


def row(
    spec: PipelineSpec,
    case: Case,
    provider: str,
    found: list[Difference],
    similarity: float | None,
    *,
    refused: bool,
) -> str:
    """A line of README's table: what, where, and what was seen."""
    height, width = case.resolution
    worst = max(found, key=lambda one: one.largest / TOLERANCES[one.precision].largest)
    precisions = ", ".join(sorted({one.precision for one in found}))
    picture = (
        "" if similarity is None else f", a picture of {case.steps} steps at {height}x{width}: {similarity:.0f} dB"
    )
    seen = f"largest difference {worst.largest:.1e} ({worst.component}){picture}"
    what = f"{spec.checkpoint}, {len(found)} components, provider {provider} ({precisions})"
    state = "refused" if refused else "good"
    return f"| {what} | {device(provider)}; {versions(provider)} | {state}: {seen}; {datetime.now(UTC):%Y-%m-%d} |"


def device(provider: str) -> str:
    """What a provider runs on."""
    capability: Any = device_capability()
    if capability and not provider.startswith((REFERENCE, OPENVINO)):
        return f"GPU of compute capability {capability[0]}.{capability[1]}"
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def versions(provider: str) -> str:
    """Of the libraries that compute."""
    from engines import openvino_runner, ort_runner

    found = openvino_runner.versions() if provider == OPENVINO else ort_runner.versions()
    with contextlib.suppress(ProviderError):
        machine = this_machine(provider.split()[0])
        found[machine.compiler] = machine.version
    return ", ".join(f"{name} {version}" for name, version in found.items())
