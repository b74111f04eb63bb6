"""`python -m export`: a checkpoint to ONNX components and `pipeline.json`; or a checkpoint of random weights."""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from pathlib import Path

from engines.arguments import resolution
from engines.catalog import TENSORS
from engines.component import PipelineSpec
from export.architectures import ARCHITECTURES


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    made.add_argument(
        "checkpoint", nargs="?", help="a diffusers folder, a .safetensors or .ckpt file, or a hub id such as owner/name"
    )
    made.add_argument("--out", type=Path, required=True, help="folder to write; `server launch --model` takes it")
    made.add_argument(
        "--resolution",
        type=resolution,
        action="append",
        help="512 or HEIGHTxWIDTH; repeat for more (default: the checkpoint's own)",
    )
    made.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="fp16 and bf16 are meant for GPUs"
    )
    made.add_argument(
        "--component", action="append", default=[], choices=tuple(TENSORS), help="export this one only; repeat for more"
    )
    made.add_argument(
        "--reuse", type=Path, action="append", default=[],
        help="another export folder: components of the same weights are taken from there; repeat for more",
    )  # fmt: skip
    made.add_argument("--controlnet", action="store_true", help="let the UNet take a ControlNet's residuals")
    single = made.add_argument_group("for a single file")
    single.add_argument("--architecture", choices=tuple(ARCHITECTURES), help="where the file does not tell")
    single.add_argument("--tokenizer", help="folder or hub id with CLIP's vocab.json and merges.txt")
    made.add_argument(
        "--random-weights",
        choices=tuple(ARCHITECTURES),
        help="instead of exporting, write a checkpoint of full size with random weights to --out",
    )
    made.add_argument("--seed", type=int, default=0, help="of the random weights")
    return made


def report(spec: PipelineSpec) -> str:
    """A table of what each component's file differs from torch by."""
    lines = [f"{'component':<16} {'type':<5} {'largest':>8} {'mean':>8} {'scaled':>8} {'limit':>8}"]
    for component in spec.components.values():
        figures = [component.parity[key] for key in ("max_abs", "mean_abs", "max_scaled", "limit")]
        lines.append(f"{component.name:<16} {component.precision:<5} " + " ".join(f"{f:>8.1e}" for f in figures))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when the export is complete and every component matches torch."""
    made = parser()
    options = made.parse_args(arguments)
    if (options.checkpoint is None) == (options.random_weights is None):
        made.error("give either a checkpoint to export, or --random-weights")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engines.errors import EngineError
    from export.errors import ExportError

    try:
        if options.random_weights:
            return _write_random(options)
        return _export(options)
    except (ExportError, EngineError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("export: interrupted; what was there before is unchanged", file=sys.stderr)
    return 1


def _write_random(options: argparse.Namespace) -> int:
    from export.random_weights import write_random_checkpoint

    write_random_checkpoint(options.random_weights, options.out, options.seed)
    print(f"{options.out}: {options.random_weights} with random weights; its pictures are noise")
    return 0


def _export(options: argparse.Namespace) -> int:
    from export.checkpoint import Checkpoint
    from export.export import Options, export_checkpoint

    checkpoint = Checkpoint.open(options.checkpoint, options.architecture, options.tokenizer)
    native = checkpoint.native_resolution
    spec = export_checkpoint(
        checkpoint,
        options.out,
        Options(
            options.resolution or [(native, native)],
            options.precision,
            options.controlnet,
            tuple(options.component),
            tuple(options.reuse),
        ),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{report(spec)}\nat most {peak:.1f} GB of memory")
    print(f"{options.out}: {spec.checkpoint}, {', '.join(spec.components)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
