"""Where a step curve for a simulation comes from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.simulated.accelerator import ACCELERATORS, GUIDED_ROWS
from server.curve_file import CurveFile, Points
from server.errors import ServerError


def add_curve_options(parser: argparse.ArgumentParser) -> None:
    curve = parser.add_argument_group("device, one of").add_mutually_exclusive_group(required=True)
    curve.add_argument("--curve", type=Path, help="a result of `python -m bench offline --json FILE`")
    curve.add_argument("--accelerator", choices=ACCELERATORS, help="model of a device, for SD 2.1 at 512 x 512")
    curve.add_argument("--step-seconds", help="rows and seconds of UNet calls, as 2:0.05,16:0.2")
    parser.add_argument("--curve-size", help="of --curve, height first, as 512x512, where several were measured")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a curve comes from, and what else it tells.

    Attributes:
        points: (rows, seconds) of UNet calls.
        encode_seconds, decode_seconds: of an image; 0 where it does not tell.
    """

    name: str
    points: Points
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    measured: bool = False

    def notes(self, options: argparse.Namespace) -> list[str]:
        """What a reader must know."""
        found = [] if self.measured else ["the curve is not a measurement of this program"]
        if (largest := self.points[-1][0]) < options.max_rows:
            found.append(f"calls of more than {largest} rows were not measured: they count in proportion to {largest}")
        if self.points[0][0] > GUIDED_ROWS:
            found.append(f"calls of fewer than {self.points[0][0]} rows count as those of {self.points[0][0]}")
        if not options.call_ms:
            found.append("the host's own time counts for nothing (--call-ms, --request-ms)")
        return found


def source_of(options: argparse.Namespace) -> Source:
    """The curve that the options name.

    Raises:
        ServerError: it cannot be read, or has no size or several.
    """
    if options.curve is not None:
        return _from_file(CurveFile.read(options.curve), options.curve_size)
    if options.curve_size is not None:
        raise ServerError(f"--curve-size is {options.curve_size}: it chooses from the sizes of --curve; leave it out")
    if options.accelerator is not None:
        device = ACCELERATORS[options.accelerator]
        rows = (1, max(2, options.max_rows))
        return Source(f"model of {options.accelerator}", tuple((n, device.seconds(n)) for n in rows))
    return Source("--step-seconds", _points(options.step_seconds))


def _from_file(file: CurveFile, wanted: str | None) -> Source:
    sizes = file.sizes("unet")
    if wanted is None and len(sizes) > 1:
        raise ServerError(f"{file.path} has the unet at {', '.join(sizes)}: choose one with --curve-size")
    size = wanted or (sizes or ["any size"])[0]
    points = file.points("unet", size)
    decoded = file.measured.get(("vae_decoder", size))
    # A prompt is encoded whatever the picture's size.
    encoded = next((rows for (name, _), rows in file.measured.items() if name == "text_encoder"), None)
    return Source(
        f"{file.path.name}: {file.checkpoint or 'a checkpoint'} by {file.provider} at {size}",
        points,
        encode_seconds=_of_rows(encoded, GUIDED_ROWS),
        decode_seconds=_of_rows(decoded, 1),
        measured=True,
    )


def _of_rows(measured: Mapping[int, float] | None, rows: int) -> float:
    """Seconds for so many rows; in proportion to the smallest call, where there is none of that size."""
    if not measured:
        return 0.0
    nearest = rows if rows in measured else min(measured)
    return float(measured[nearest] / 1e3 * rows / nearest)


def _points(text: str) -> Points:
    try:
        found = {int(rows): float(seconds) for rows, _, seconds in (part.partition(":") for part in text.split(","))}
        if any(rows < 1 or not 0 < seconds < float("inf") for rows, seconds in found.items()):
            raise ValueError
    except ValueError:
        raise ServerError(f"--step-seconds is {text}: write rows and seconds above 0, as 2:0.05,16:0.2") from None
    return tuple(sorted(found.items()))
