"""Do the embedded checkpoint and its variants draw what is asked? Cases that their training never saw, judged."""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.judging.judge import Judge
from bench.judging.scenes import Painter
from bench.judging.trials import TASKS, Scores, Trial
from bench.serving import ask_all, running_server
from server.config import named_model
from server.errors import ServerError

DEFAULT = ("txt2img",)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="host:port of a running server's gRPC; by default one is started")
    parser.add_argument(
        "--model", type=named_model, action="append", metavar="[NAME=]DIR",
        help="export folder for a started server; repeat for the variants (default: out/export)",
    )  # fmt: skip
    parser.add_argument("--task", action="append", choices=[*TASKS, "all"], help="repeat for more (default: txt2img)")
    parser.add_argument("--cases", "--captions", type=int, default=200, help="of each task, if there are so many")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--resolution", type=int, default=128, help="of txt2img")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures that were judged wrong")
    parser.add_argument("--dry-run", action="store_true", help="fake networks: shows that all runs, not how well")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Draw, judge, count.

    Raises:
        ServerError: a server that does not start, or that refuses a case.
    """
    if options.cases < 1:
        raise ServerError(f"--cases is {options.cases}: give at least 1")
    asked = options.task or list(DEFAULT)
    names = list(TASKS) if "all" in asked else list(dict.fromkeys(asked))
    judge, painter = Judge(), Painter()
    trials = {name: TASKS[name](judge, painter)[: options.cases] for name in names}
    for trial in trials.get("txt2img", ()):
        trial.fields["height"] = options.resolution
    models = options.model or [named_model("out/export")]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "triton.log"
        provider = "fake" if options.dry_run else "auto"
        with running_server(options.url, models, provider, log) as url:
            found = {name: _judged(name, some, url, options) for name, some in trials.items()}
    settings = {k: getattr(options, k) for k in ("cases", "steps", "guidance", "sampler", "resolution", "dry_run")}
    return {"tasks": found, "settings": settings}


def _judged(name: str, trials: list[Trial], url: str, options: argparse.Namespace) -> dict[str, float]:
    """Means of what was found, and the number of cases."""
    common = {
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "sampler": options.sampler,
    }
    requests = [{**common, "seed": 1000 + i, **trial.fields} for i, trial in enumerate(trials)]
    pictures = [answer.result.pixels()[0] for answer in ask_all(url, requests, options.concurrency)]
    scores = [trial.judge(picture) for trial, picture in zip(trials, pictures, strict=True)]
    if options.pictures:
        for i, (trial, score, picture) in enumerate(zip(trials, scores, pictures, strict=True)):
            if 0.0 in score.values():
                _keep(options.pictures / name, i, str(trial.fields["prompt"]), score, picture)
    return {**_means(scores), "cases": len(trials)}


def _means(scores: list[Scores]) -> dict[str, float]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for score in scores:
        for aspect, value in score.items():
            values[aspect].append(value)
    return {aspect: round(float(np.mean(found)), 4) for aspect, found in values.items()}


def _keep(folder: Path, index: int, prompt: str, score: Scores, picture: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wrong = " ".join(aspect for aspect, value in score.items() if value == 0)
    Image.fromarray(picture).save(folder / f"{index:03d} {prompt} - wrong {wrong}.png".replace("/", "-"))
