"""How good pictures are.

Judged: do the embedded checkpoint and its variants draw what is asked, in cases that their training never saw?
Compared (--compare-with): how like are pictures of the same seeds, drawn by another provider or from another export?
Measured (--captions FILE with --real or --clip): FID and CLIP score of any checkpoint, with data that the user has.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from bench.judging.captions import picture_files, read_captions, read_pictures
from bench.judging.distances import CLIP, FEATURES, INCEPTION_REMEDY, MLPERF_WINDOW, CaptionScore, FrechetDistance
from bench.judging.drawn import Drawn, Pictures
from bench.judging.judge import Judge
from bench.judging.likeness import Likeness, likeness
from bench.judging.scenes import Painter
from bench.judging.scores import judged_measures, means
from bench.judging.trials import TASKS, Scores, Trial
from bench.reporting.measures import Measure, Plot, distribution, told
from bench.serving import Named, answers, running_server
from engines.errors import EngineError
from engines.runner import chosen_provider
from server.config import named_model
from server.errors import ServerError
from server.fields import Value

DEFAULT = ("txt2img",)
CAPTIONS = "captions"
FIRST_SEED = 1000

Requests = list[dict[str, Value]]
# What draws requests on one server.
Draws = Callable[[Requests], Pictures]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="host:port of a running server's gRPC; by default one is started")
    parser.add_argument(
        "--model", type=named_model, action="append", metavar="[NAME=]DIR",
        help="export folder for a started server; repeat for the variants (default: out/export)",
    )  # fmt: skip
    parser.add_argument("--provider", default="auto", help="of a started server: auto, cpu (fp32), openvino, cuda ...")
    parser.add_argument("--task", action="append", choices=[*TASKS, "all"], help="repeat for more (default: txt2img)")
    parser.add_argument("--cases", type=int, default=200, help="of each task, if there are so many")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--resolution", type=int, help="height of txt2img and of captions (the checkpoint's first)")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures that were judged wrong")
    parser.add_argument("--dry-run", action="store_true", help="fake networks: shows that all runs, not how well")
    parser.add_argument(
        "--compare-with", action="append", default=[], metavar="PROVIDER|DIR",
        help="draw the same with another provider, or another export of the checkpoint, and compare; repeat for more",
    )  # fmt: skip
    parser.add_argument(
        "--captions", metavar="FILE",
        help="draw these instead of the tasks: a text file, one a line, or a .tsv with a column `caption`; "
        "a number is taken as --cases",
    )  # fmt: skip
    parser.add_argument("--real", type=Path, metavar="DIR", help="real pictures: FID of what is drawn from --captions")
    parser.add_argument("--inception", type=Path, metavar="FILE", help=f"for FID; {INCEPTION_REMEDY}")
    parser.add_argument("--clip", metavar="DIR|NAME", help=f"CLIP score of --captions by this CLIP, such as {CLIP}")


@dataclass
class Found:
    """What there is to tell, as it comes."""

    result: dict[str, Any] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Draw, and judge, compare or measure.

    What fails after the first figure is told in `failures`, beside what there is.

    Raises:
        ServerError: options that do not fit together, data or libraries that are missing, a server that does not
            start, or that refuses a case.
    """
    if options.captions and options.captions.isdecimal():
        options.cases, options.captions = int(options.captions), None
    for name in ("cases", "concurrency"):
        if getattr(options, name) < 1:
            raise ServerError(f"--{name} is {getattr(options, name)}: give at least 1")
    measuring = _measuring(options)
    trials = _trials(options)
    captions = [] if options.captions is None else _captions(options)
    models = options.model or [named_model("out/export")]
    # Before what is drawn takes its time.
    others = [_other(text, models, options) for text in options.compare_with]
    found = Found({"tasks": {}})
    requests = {name: [{**trial.fields} for trial in some] for name, some in trials.items()}
    requests |= {CAPTIONS: captions} if captions else {}
    drawn: dict[str, Pictures] = {}
    try:
        with contextlib.ExitStack() as stack:
            with _drawing(options, options.url, models, options.provider, _folder(stack)) as draws:
                for name, some in requests.items():
                    drawn[name] = draws(some)
                    if name == CAPTIONS:
                        _measure(found, drawn[name], [str(fields["prompt"]) for fields in some], measuring)
                    else:
                        _judge(found, name, trials[name], drawn[name], options)
            for other in others:
                with _drawing(options, None, other.models, other.provider, _folder(stack)) as draws:
                    _compare(found, other, {name: draws(some) for name, some in requests.items()}, drawn)
    except (ServerError, EngineError, KeyboardInterrupt) as error:
        if not found.measures:
            raise
        found.result |= {"partial": True, "failures": [str(error) or "interrupted"]}
    names = ("cases", "steps", "guidance", "sampler", "resolution", "provider", "dry_run")
    settings = {name: getattr(options, name) for name in names}
    return {**found.result, "settings": settings, **told(found.measures, found.plots)}


def _trials(options: argparse.Namespace) -> dict[str, list[Trial]]:
    asked = options.task or ([] if options.captions else list(DEFAULT))
    names = list(TASKS) if "all" in asked else list(dict.fromkeys(asked))
    judge, painter = Judge(), Painter()
    trials = {name: TASKS[name](judge, painter)[: options.cases] for name in names}
    for trial in trials.get("txt2img", ()):
        trial.fields.update(_size(options))
    return trials


def _captions(options: argparse.Namespace) -> Requests:
    captions = read_captions(Path(options.captions))[: options.cases]
    return [{"prompt": caption, **_size(options)} for caption in captions]


def _size(options: argparse.Namespace) -> dict[str, Value]:
    return {} if options.resolution is None else {"height": options.resolution}


def _folder(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory()))


@contextlib.contextmanager
def _drawing(
    options: argparse.Namespace, url: str | None, models: Sequence[Named], provider: str, folder: Path
) -> Iterator[Draws]:
    """Draws with the settings and seeds that all pictures have, on a server that lasts as long as the block."""
    common = {"num_inference_steps": options.steps, "guidance_scale": options.guidance, "sampler": options.sampler}
    with running_server(url, models, "fake" if options.dry_run else provider, folder / "triton.log") as address:
        numbers = itertools.count()

        def draws(requests: Requests) -> Pictures:
            asked = [{**common, "seed": FIRST_SEED + i, **fields} for i, fields in enumerate(requests)]
            found = answers(address, asked, options.concurrency)
            return Drawn(folder / str(next(numbers)), (answer.result.images[0] for answer in found))

        yield draws


def _judge(found: Found, name: str, trials: list[Trial], pictures: Pictures, options: argparse.Namespace) -> None:
    scores = [trial.judge(picture) for trial, picture in zip(trials, pictures, strict=True)]
    if options.pictures:
        for i, (trial, score, picture) in enumerate(zip(trials, scores, pictures, strict=True)):
            if 0.0 in score.values():
                _keep(options.pictures / name, i, str(trial.fields["prompt"]), score, picture)
    found.result["tasks"][name] = {**means(scores), "cases": len(trials)}
    found.measures.extend(judged_measures(name, scores))


@dataclass(frozen=True, slots=True)
class Measuring:
    """What captions are drawn for."""

    distance: FrechetDistance | None
    real: list[Path]
    score: CaptionScore | None


def _measuring(options: argparse.Namespace) -> Measuring:
    """Libraries, networks and data, before a picture is drawn."""
    if options.captions is None and (options.real or options.clip):
        raise ServerError("--real and --clip are about pictures of --captions FILE: give one")
    if options.captions is not None and not (options.real or options.clip or options.compare_with):
        raise ServerError("--captions FILE is drawn to be measured: add --real DIR, --clip DIR or --compare-with")
    return Measuring(
        FrechetDistance(options.inception) if options.real else None,
        picture_files(options.real) if options.real else [],
        CaptionScore(options.clip) if options.clip else None,
    )


def _measure(found: Found, pictures: Pictures, captions: list[str], measuring: Measuring) -> None:
    measured: dict[str, Any] = {"cases": len(pictures)}
    if measuring.distance:
        if len(pictures) < 2:
            raise ServerError(f"FID needs at least 2 pictures and --captions has {len(pictures)}: add some")
        measuring.distance.add(read_pictures(measuring.real), real=True)
        measuring.distance.add(pictures, real=False)
        measured |= {"fid": round(measuring.distance.value(), 4), "real": len(measuring.real)}
        found.measures.append(Measure("FID", measured["fid"], "", "lower"))
        if min(len(pictures), len(measuring.real)) < FEATURES:
            measured["note"] = f"with fewer than {FEATURES:,} pictures on both sides FID comes out too large"
    if measuring.score:
        measured["clip_score"] = round(measuring.score.value(pictures, captions), 4)
        found.measures.append(Measure("CLIP score", measured["clip_score"], "", "higher"))
    measured["mlperf_window"] = {
        "for": "SDXL on 5,000 captions of COCO 2014, 20 Euler steps, guidance 8; for information",
        **MLPERF_WINDOW,
    }
    found.result["captions"] = measured


@dataclass(frozen=True, slots=True)
class Other:
    """What is compared with: the provider, and the exports of the models."""

    name: str
    provider: str
    models: list[Named]


def _other(text: str, models: Sequence[Named], options: argparse.Namespace) -> Other:
    """A folder takes the place of the first model; all else is a provider."""
    folder = Path(text)
    if folder.is_dir():
        (name, _), *more = models
        return Other(text, options.provider, [(name, folder), *more])
    if "/" in text:
        raise ServerError(f"--compare-with {text} is no folder; write one with `python -m export`, or name a provider")
    if options.url:
        raise ServerError("--compare-with PROVIDER starts a server of --model: give that instead of --url")
    return Other(text, chosen_provider(text), list(models))


def _compare(found: Found, other: Other, theirs: dict[str, Pictures], drawn: dict[str, Pictures]) -> None:
    compared = {
        name: _likeness(found, f"{name} with {other.name}", likeness(drawn[name], pictures))
        for name, pictures in theirs.items()
    }
    found.result.setdefault("compared", {})[other.name] = {"provider": other.provider, "tasks": compared}


def _likeness(found: Found, name: str, alike: list[Likeness]) -> dict[str, Any]:
    told_of: dict[str, Any] = {"cases": len(alike)}
    for what, unit in (("psnr_db", "dB"), ("ssim", "")):
        values = [asdict(one)[what] for one in alike]
        figures = {"median": statistics.median(values), "mean": statistics.fmean(values), "least": min(values)}
        told_of[what] = {which: round(value, 4) for which, value in figures.items()}
        label = what.removesuffix("_db").upper()
        found.measures.append(Measure(f"{label} {name}, median", figures["median"], unit, "higher"))
        found.measures.append(Measure(f"{label} {name}, least", figures["least"], unit, "higher"))
        plot = Plot(f"{label} {name}", "histogram", unit or label, "pictures", {name: distribution(values)})
        found.plots.append(plot)
    return told_of


def _keep(folder: Path, index: int, prompt: str, score: Scores, picture: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wrong = " ".join(aspect for aspect, value in score.items() if value == 0)
    Image.fromarray(picture).save(folder / f"{index:03d} {prompt} - wrong {wrong}.png".replace("/", "-"))
