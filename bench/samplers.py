"""The schedules drawn as curves, and one prompt across all samplers as a contact sheet."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from bench.reporting.measures import Measure, Plot, told
from bench.serving import ask_all, running_server
from engines.component import PipelineSpec
from server.config import named_model
from server.levels import KINDS, Choice
from server.sampler_names import SAMPLERS, Sampler
from server.samplers import METHODS
from server.schedule import TrainedSchedule

COLUMNS = 6
CAPTION = 14
# Of which each stands for those that lay their levels alike.
FAMILIES = ("euler", "dpmpp_2m")
# Samplers of distilled checkpoints draw nothing of use with any other.
DISTILLED = ("lcm", "tcd")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="host:port of a running server's gRPC; by default one is started")
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="export folder")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for samplers.png and schedules.png")
    parser.add_argument("--prompt", default="a small purple star on a yellow background")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dry-run", action="store_true", help="fake networks: shows that all runs")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Writes both pictures; gives the seconds that each sampler's request took among the others."""
    options.out.mkdir(parents=True, exist_ok=True)
    spec = PipelineSpec.read(options.model)
    trained = TrainedSchedule.from_config({**spec.schedule, "prediction_type": spec.prediction_type})
    draw_schedules(trained, options.steps, options.out / "schedules.png")
    chosen = [sampler for sampler in SAMPLERS if sampler.name not in DISTILLED]
    requests = [
        {
            "prompt": options.prompt,
            "seed": options.seed,
            "sampler": sampler.name,
            "num_inference_steps": options.steps,
            "guidance_scale": options.guidance,
        }
        for sampler in chosen
    ]
    with tempfile.TemporaryDirectory() as folder:
        log, provider = Path(folder) / "triton.log", "fake" if options.dry_run else "auto"
        with running_server(options.url, [named_model(str(options.model))], provider, log) as url:
            started = time.monotonic()
            answers = ask_all(url, requests, len(requests))
            seconds = time.monotonic() - started
    pictures = [Image.fromarray(answer.result.pixels()[0]) for answer in answers]
    contact_sheet(chosen, pictures).save(options.out / "samplers.png")
    calls = {s.name: answer.result.metadata["timing"]["unet_rows"] for s, answer in zip(chosen, answers, strict=True)}
    measures = [Measure(f"one picture by each of {len(chosen)} samplers at once", seconds, "s", "lower")]
    return {
        "samplers": len(chosen),
        "seconds": seconds,
        "rows": calls,
        **told(measures, schedule_plots(trained, options.steps)),
        "settings": {"steps": options.steps},
    }


def contact_sheet(samplers: list[Sampler], pictures: list[Image.Image]) -> Image.Image:
    """The pictures in rows, each with its sampler's name below."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * (height + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (sampler, picture) in enumerate(zip(samplers, pictures, strict=True)):
        x, y = (i % COLUMNS) * width, (i // COLUMNS) * (height + CAPTION)
        sheet.paste(picture, (x, y))
        pen.text((x + 3, y + height + 1), sampler.name, fill="black")
    return sheet


def schedule_plots(trained: TrainedSchedule, steps: int) -> list[Plot]:
    """The same as `draw_schedules`, as data."""
    plots = []
    for name in FAMILIES:
        laid = {kind: METHODS[name].lay(trained, Choice(kind=kind, steps=steps)) for kind in KINDS}
        sigmas = {kind: [(i, step.level.ratio) for i, step in enumerate(line)] for kind, line in laid.items()}
        times = {kind: [(i, step.timestep) for i, step in enumerate(line)] for kind, line in laid.items()}
        plots.append(Plot(f"Noise levels, {name}", "curve", "step", "sigma", sigmas, logarithmic=True))
        plots.append(Plot(f"Timesteps, {name}", "curve", "step", "timestep", times))
    return plots


def draw_schedules(trained: TrainedSchedule, steps: int, file: Path) -> None:
    """Sigma and timestep of every step, for every schedule, on Euler's and on the DPM family's levels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, name in enumerate(FAMILIES):
        for kind in KINDS:
            laid = METHODS[name].lay(trained, Choice(kind=kind, steps=steps))
            axes[0][column].plot([step.level.ratio for step in laid], marker=".", label=kind)
            axes[1][column].plot([step.timestep for step in laid], marker=".", label=kind)
        axes[0][column].set(title=name, ylabel="sigma", yscale="log")
        axes[1][column].set(xlabel="step", ylabel="timestep")
    axes[0][1].legend(fontsize="small")
    figure.savefig(file)
