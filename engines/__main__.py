"""`python -m engines`: compile an export's components to plans, look at plans, and compare what they compute."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engines.arguments import bounds, capability, component_rows, gigabytes, level, resolution
from engines.profiles import TOKENS
from engines.verify import add_arguments, main_verify

if TYPE_CHECKING:
    from engines.build import Order


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m engines", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(
        commands.add_parser(
            "build", help="compile an export's components; what is there stays, what an earlier export left goes"
        )
    )
    inspecting = commands.add_parser("inspect", help="what plans were made from, and whether they are still good")
    inspecting.add_argument("place", type=Path, metavar="DIR|PLAN", help="an export folder, or one plan")
    inspecting.add_argument("--here", action="store_true", help="also refuse what this machine cannot run, and say why")
    inspecting.add_argument("--json", action="store_true", help="print the whole manifests as JSON instead")
    inspecting.set_defaults(run=run_inspect)
    verifying = commands.add_parser("verify", help="compare a provider or plans with the CPU in fp32")
    add_arguments(verifying)
    verifying.set_defaults(run=main_verify)
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
    made.add_argument("--tokens", type=bounds, metavar="MIN:OPT:MAX", help=f"tokens of a prompt (default: {TOKENS})")
    made.add_argument("--compute-capability", type=capability, action="append", default=[], metavar="MAJOR.MINOR",
                      help="of the GPUs that the plans are for, such as 8.9; repeat for one plan for several "
                           "(default: the GPU at hand; with tensorrt_rtx, 8.0 and later)")  # fmt: skip
    made.add_argument("--refittable", action="store_true", help="weights can be exchanged later, as LoRA does")
    made.add_argument(
        "--strip",
        action="store_true",
        help="leave out the weights, for programs of your own that refit them: the server does not",
    )
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

    machine = None
    if options.here:
        from engines.driver import this_machine

        machine = this_machine()
    found = findings(options.place, machine)
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
