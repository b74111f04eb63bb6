"""Ours against others on the same weights, steps, seeds and machine: whole pictures, or the UNet alone.

Each peer is compared with ours by itself, in turns, after its picture was compared with ours in fp32; one that draws
another picture gets no ratio. Ours is the real server, asked over gRPC; peers are given the time that they take from
the call to pixels in memory, with no network. Under the mixed load a pipeline that is no server draws one request
after the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.peers.pictures import PEERS, run_pictures
from bench.peers.told import SETTINGS
from bench.peers.unet import PEERS as UNET_PEERS
from bench.peers.unet import run_unet
from bench.peers.worker import MODULES
from bench.traffic.mix_options import WORKLOADS, listed
from engines.errors import EngineError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--what", choices=("pictures", "unet"), default="pictures")
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("export/embedded/checkpoint"),
        help="the diffusers folder that it was made from",
    )  # fmt: skip
    parser.add_argument("--provider", default="auto", help="ours: auto, or a name of `server launch --provider`")
    parser.add_argument(
        "--peer", choices=(*PEERS, *UNET_PEERS), action="append", default=[], metavar="PEER",
        help=f"repeat for more (default: all). Of pictures: {', '.join(PEERS)}. Of the UNet: {', '.join(UNET_PEERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, nargs=1, default=(), help="in pixels, such as 512 (default: the first of the export)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, ours and theirs in each")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: one per core")
    unet = parser.add_argument_group("the UNet alone")
    unet.add_argument("--rows", type=int, default=2, help="of a call; a guided image takes two")
    _add_picture_options(parser.add_argument_group("whole pictures"))


def _add_picture_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--setting", choices=SETTINGS, action="append", help="repeat for more (default: all)")
    group.add_argument("--steps", type=int, default=20, help="of a single picture and of a batch, by Euler's method")
    group.add_argument("--guidance", type=float, default=2.0, help="of all pictures, above 1")
    group.add_argument("--batch", type=int, default=8, help="pictures that are wanted together")
    group.add_argument(
        "--mix", type=listed(int), default=WORKLOADS["mixed"], help="steps of the mixed load, as 4,20,50"
    )
    group.add_argument("--requests", type=int, default=24, help="of the mixed load, in each round")
    group.add_argument("--concurrency", type=int, default=8, help="requests of the mixed load that are open at a time")
    group.add_argument(
        "--rate", type=float, default=0.0,
        help="instead: requests a second, at random times; then ratios are of mean latencies, not of the time for all",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--even-if-different", action="store_true", help="time peers that draw another picture all the same"
    )
    group.add_argument(
        "--peer-python", type=_interpreter, action="append", default=[], metavar="PEER=PATH",
        help="the interpreter that has the packages of a peer, if it is another one; repeat for more",
    )  # fmt: skip
    group.add_argument("--work", type=Path, default=Path("out/peers"), help="folder for what peers convert")
    group.add_argument("--limit", type=float, default=3600.0, help="seconds that a peer may take to load, or to draw")
    group.add_argument("--log", type=Path, default=Path("out/peers/ours.log"), help="our server's; others' lie beside")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What `run_pictures` or `run_unet` finds.

    Raises:
        EngineError, ServerError: as they do; or a peer of the one was asked of the other.
    """
    known = tuple(PEERS) if options.what == "pictures" else tuple(UNET_PEERS)
    for name in options.peer:
        if name not in known:
            raise EngineError(f"--peer {name} is none of --what {options.what}, which has {', '.join(known)}")
    return run_pictures(options) if options.what == "pictures" else run_unet(options)


def _interpreter(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if name not in MODULES or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is no PEER=PATH with a PEER of {', '.join(MODULES)}")
    return name, path
