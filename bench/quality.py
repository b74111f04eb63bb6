"""Does the embedded checkpoint draw what is asked? 200 captions that its training never saw, judged."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.judge import WORLD_FOLDER, Judge, Pixels, Sight
from bench.serving import ask_all, running_server

ASPECTS = ("colour", "background", "shape")


def captions(count: int, folder: Path = WORLD_FOLDER) -> list[dict[str, str]]:
    """Held-out captions with the colour, background and shape that must be seen."""
    asked: list[dict[str, str]] = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    return asked[:count]


def scores(asked: list[dict[str, str]], seen: list[Sight]) -> dict[str, float]:
    """The share of pictures that are right, per aspect."""
    pairs = list(zip(asked, seen, strict=True))
    return {aspect: float(np.mean([getattr(s, aspect) == a[aspect] for a, s in pairs])) for aspect in ASPECTS}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="host:port of a running server's gRPC; by default one is started")
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="export folder for a started server")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures that were judged wrong")
    parser.add_argument("--dry-run", action="store_true", help="fake networks: shows that all runs, not how well")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Draw, judge, count."""
    asked = captions(options.captions)
    requests = [
        {
            "prompt": item["caption"],
            "seed": 1000 + i,
            "num_inference_steps": options.steps,
            "guidance_scale": options.guidance,
            "sampler": options.sampler,
            "height": options.resolution,
        }
        for i, item in enumerate(asked)
    ]
    provider = "fake" if options.dry_run else "auto"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "triton.log"
        with running_server(options.url, options.model, provider, log) as url:
            answers = ask_all(url, requests, options.concurrency)
    pictures = [answer.result.pixels()[0] for answer in answers]
    judge = Judge()
    seen = [judge.look(picture) for picture in pictures]
    if options.pictures:
        _keep_wrong(options.pictures, asked, seen, pictures)
    settings = {k: getattr(options, k) for k in ("captions", "steps", "guidance", "sampler", "resolution", "dry_run")}
    return {"tasks": {"txt2img": scores(asked, seen)}, "settings": settings, "seconds": answers[-1].seconds}


def _keep_wrong(folder: Path, asked: list[dict[str, str]], seen: list[Sight], pictures: list[Pixels]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (item, sight, picture) in enumerate(zip(asked, seen, pictures, strict=True)):
        if any(getattr(sight, aspect) != item[aspect] for aspect in ASPECTS):
            name = f"{i:03d} {item['caption']} - seen {sight.colour} {sight.shape} on {sight.background}.png"
            Image.fromarray(picture).save(folder / name.replace("/", "-"))
