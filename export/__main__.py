"""`python -m export`: a checkpoint to ONNX components and `pipeline.json`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path


def resolution(text: str) -> tuple[int, int]:
    """`512` or `768x512` (height x width) as (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no resolution; write 512, or 768x512 for height x width")
    return int(sides[0]), int(sides[-1])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    made.add_argument("checkpoint", help="a diffusers folder, or a hub id such as owner/name")
    made.add_argument("--out", type=Path, required=True, help="folder to write; `server launch --model` takes it")
    made.add_argument(
        "--resolution",
        type=resolution,
        action="append",
        help="512 or HEIGHTxWIDTH; repeat for more (default: the checkpoint's own)",
    )
    made.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="fp16 is meant for GPUs")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when the export is complete and every component matches torch."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engines.errors import EngineError
    from export.checkpoint import Checkpoint
    from export.errors import ExportError
    from export.export import export_checkpoint

    try:
        checkpoint = Checkpoint.open(options.checkpoint)
        native = checkpoint.native_resolution
        spec = export_checkpoint(checkpoint, options.out, options.resolution or [(native, native)], options.precision)
    except (ExportError, EngineError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {spec.checkpoint}, {', '.join(spec.components)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
