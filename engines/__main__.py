"""`python -m engines`: compile an export's components to plans, and look at plans."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.build import Order
    from engines.profiles import Bounds


def resolution(text: str) -> tuple[int, int]:
    """`512` or `768x512` (height x width) as (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no resolution; write 512, or 768x512 for height x width")
    return int(sides[0]), int(sides[-1])


def capability(text: str) -> tuple[int, int]:
    """`8.9` as (8, 9)."""
    numbers = text.split(".")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability; write major and minor, such as 8.9")
    return int(numbers[0]), int(numbers[1])


def bounds(text: str) -> Bounds:
    """`1:8:16` as the fewest, the usual and the most; `8` as all three."""
    from engines.errors import BuildError
    from engines.profiles import Bounds

    numbers = text.split(":")
    if len(numbers) not in (1, 3) or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} are no bounds; write minimum:optimum:maximum, such as 1:8:16")
    try:
        return Bounds(*(int(number) for number in numbers * (3 // len(numbers))))
    except BuildError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def component_rows(text: str) -> tuple[str, Bounds]:
    """`1:8:16`, or `unet=1:8:16` for one component, as its name (empty for all) and the bounds."""
    name, _, numbers = text.rpartition("=")
    return name, bounds(numbers)


def level(text: str) -> int:
    """0 to 5."""
    if text not in "012345" or len(text) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no level; choose 0 (fastest build) to 5 (fastest plan)")
    return int(text)


def gigabytes(text: str) -> int:
    """`4.5` as bytes, in units of 2^30."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write gigabytes, such as 8")
    return int(size * 2**30)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m engines", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(commands.add_parser("build", help="compile an export's components; what is there already stays"))
    inspecting = commands.add_parser("inspect", help="what plans were made from, and whether they are still good")
    inspecting.add_argument("place", type=Path, metavar="DIR|PLAN", help="an export folder, or one plan")
    inspecting.add_argument("--json", action="store_true", help="print the whole manifests as JSON instead")
    inspecting.set_defaults(run=run_inspect)
    return made


def _add_build(made: argparse.ArgumentParser) -> None:
    made.add_argument("folder", type=Path, metavar="DIR", help="an export; its plans go into DIR/plans")
    made.add_argument("--compiler", choices=("auto", "tensorrt", "tensorrt_rtx"), default="auto",
                      help="default: what is installed, tensorrt before tensorrt_rtx")  # fmt: skip
    made.add_argument("--resolution", type=resolution, action="append", default=[],
                      help="512 or HEIGHTxWIDTH; repeat for more (default: all of the export)")  # fmt: skip
    made.add_argument("--component", action="append", default=[], help="repeat for more (default: all)")
    made.add_argument("--rows", type=component_rows, action="append", default=[], metavar="[COMPONENT=]MIN:OPT:MAX",
                      help="rows of a call, for all components or one; repeat for more "
                           "(default: 1:8:16 for unet and controlnet, 1:2:8 for others)")  # fmt: skip
    made.add_argument("--tokens", type=bounds, metavar="MIN:OPT:MAX", help="tokens of a prompt (default: 77:77:231)")
    made.add_argument("--compute-capability", type=capability, action="append", default=[], metavar="MAJOR.MINOR",
                      help="of the GPUs that the plans are for, such as 8.9; repeat for one plan for several "
                           "(default: the GPU at hand; with tensorrt_rtx, 8.0 and later)")  # fmt: skip
    made.add_argument("--refittable", action="store_true", help="weights can be exchanged later, as LoRA does")
    made.add_argument("--strip", action="store_true", help="leave out the weights; they are put in at load")
    made.add_argument("--level", type=level, default=3, help="builder optimisation, 0 to 5 (default: %(default)s)")
    made.add_argument("--memory-gb", type=gigabytes, default=0, help="scratch memory of a plan at most, in GiB")
    made.add_argument("--tf32", action="store_true", help="fp32 products may round to TF32: faster fp32 VAEs")
    made.add_argument("--timing-cache", type=Path, metavar="FILE", help="times of tactics, read and added to")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    made.set_defaults(run=run_build)


def order(options: argparse.Namespace) -> Order:
    """What the options of `build` ask for.

    Raises:
        EngineError: the folder is no export.
    """
    from engines.build import Order
    from engines.component import PipelineSpec
    from engines.manifest import Options
    from engines.profiles import TOKENS

    rows = dict(options.rows)
    everywhere = rows.pop("", None)
    if everywhere:
        rows = dict.fromkeys(PipelineSpec.read(options.folder).components, everywhere) | rows
    return Order(
        compiler=options.compiler,
        components=tuple(options.component),
        resolutions=tuple(options.resolution),
        rows=rows,
        tokens=options.tokens or TOKENS,
        capabilities=tuple(options.compute_capability),
        options=Options(options.refittable, options.strip, options.level, options.memory_gb, options.tf32),
        timing_cache=options.timing_cache,
    )


def run_build(options: argparse.Namespace) -> int:
    """Build, and say what came of it."""
    from engines.build import build
    from engines.inspect import Finding, table

    started = time.monotonic()
    built = build(options.folder, order(options))
    found = [Finding(each.plan, each.manifest, "") for each in built]
    hits = sum(each.hit for each in built)
    print(table(found))
    print(f"{len(built) - hits} built, {hits} were there, in {time.monotonic() - started:.1f} s")
    if options.json:
        plans = [finding.to_json() | {"hit": each.hit} for finding, each in zip(found, built, strict=True)]
        options.json.write_text(json.dumps({"plans": plans}, indent=1) + "\n", encoding="utf-8")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Exit code 1 when a plan is refused."""
    from engines.inspect import findings, table

    found = findings(options.place)
    print(json.dumps([finding.to_json() for finding in found], indent=1) if options.json else table(found))
    return int(any(finding.refusal for finding in found))


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 only if what was asked was done."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engines.errors import EngineError

    try:
        return int(options.run(options))
    except ImportError as error:
        print(f"engines: {error}; run `pip install '.[plans]'`", file=sys.stderr)
    except (EngineError, OSError) as error:
        print(f"engines: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("engines: interrupted; what was finished stays", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
