"""What requests are like, as options of a command say it or a workload file."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bench.traffic.arrivals import Bursts
from bench.traffic.mix import ALL_FACES, FACES, Face, Mix
from bench.traffic.workload import Workload, read_workload
from server.errors import ServerError

Item = TypeVar("Item")
# Steps that are equally frequent.
WORKLOADS: dict[str, tuple[int, ...]] = {"mixed": (4, 20, 50), "uniform": (20,)}
# Each makes one UNet call a step.
SAMPLERS = ("euler", "dpmpp_2m", "ddim")
# Options that stand for something in a mix, and what it is called there.
IN_MIX = {
    **{"steps": "steps", "samplers": "samplers", "guidance": "guidance", "size": "sizes", "images": "images"},
    **{"face": "faces", "seed": "seed", "format": "formats", "clients": "clients"},
    **{"cancel_share": "cancel_share", "cancel_within": "leave_within", "malformed_share": "malformed_share"},
    **{"preview_interval": "preview_interval"},
}


def listed(convert: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """Of an option's text: values between commas."""

    def values(text: str) -> tuple[Item, ...]:
        return tuple(convert(part.strip()) for part in text.split(","))

    values.__name__ = f"list of {convert.__name__.strip('_')}"
    return values


def faces(text: str) -> tuple[Face, ...]:
    """Of an option's text: one of the faces, or both of gRPC."""
    if text == "both":
        return FACES
    if found := tuple(face for face in ALL_FACES if face == text):
        return found
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(ALL_FACES)} and both")


def said(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a mix that the options name."""
    return {theirs: value for ours, theirs in IN_MIX.items() if (value := getattr(options, ours, None)) is not None}


def add_mix_options(parser: argparse.ArgumentParser) -> None:
    """Those that matter whether requests are sent or simulated; `--workload` is the caller's."""
    group = parser.add_argument_group("requests", "where there are several values, each is as likely")
    group.add_argument("--steps", type=listed(int), help="denoising steps, as 4,20,50 (20)")
    group.add_argument("--samplers", type=listed(str), help="as euler,dpmpp_2m,ddim (euler)")
    group.add_argument("--guidance", type=listed(float), help="1 or less takes one row, more takes two (7.5)")
    group.add_argument("--seed", type=int, help="of requests and arrivals (0)")
    group.add_argument("--cv", type=float, help="deviation of the times between arrivals over their mean (1: Poisson)")


def mix_of(options: argparse.Namespace, name: str) -> tuple[Mix, Workload]:
    """The requests that the options describe, and what else a workload file says.

    Args:
        name: begins every request's id.

    Raises:
        ServerError: there is no such workload, or its file is none.
    """
    wanted, workload = options.workload, Workload()
    found: dict[str, Any] = {}
    if wanted in WORKLOADS:
        found = {"steps": WORKLOADS[wanted], "samplers": SAMPLERS}
    elif wanted is not None:
        if not Path(wanted).is_file():
            raise ServerError(f"--workload is {wanted}: give {' or '.join(WORKLOADS)}, or a YAML file that is there")
        workload = read_workload(Path(wanted))
        found = dict(workload.mix)
    # Requests that are not meant to be answered have no goodput.
    wishes = {"cancel_share": 0.0, "malformed_share": 0.0, "timeouts_ms": (0,), "name": name}
    return Mix(**{**found, **said(options), **wishes}), workload


def variation_of(options: argparse.Namespace, workload: Workload) -> float:
    """Deviation of the gaps between arrivals over their mean: what the command says, or the file, or Poisson's.

    Raises:
        ServerError: it is not above 0.
    """
    given = [one.variation for one in workload.arrivals if isinstance(one, Bursts)]
    variation = float(options.cv if options.cv is not None else [*given, 1.0][0])
    if not 0 < variation < math.inf:
        raise ServerError(f"--cv is {variation:g}: give a number above 0; 1 is Poisson")
    return variation
