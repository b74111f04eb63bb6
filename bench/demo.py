"""The main job, start to end: a gallery of mixed requests through the real Triton, with figures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from bench.examples import GALLERY, Example, task_examples
from bench.judging.judge import Pixels
from bench.reporting.measures import Measure, Plot, told
from bench.serving import Answer, ask_all, rows_per_call, running_server
from server.client import Client
from server.config import named_model
from server.fields import Value

DEFAULTS: dict[str, Value] = {"num_inference_steps": 20, "guidance_scale": 2.0}
TILE, CAPTION, COLUMNS = 192, 54, 5


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=named_model, action="append", metavar="[NAME=]DIR",
        help="a folder written by `python -m export`; repeat for the variants, whose tasks are then shown "
        "(default: out/export)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=7)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start a server, draw one picture alone, then the gallery all at once, then each task; write the pictures."""
    models = options.model or [named_model("out/export")]
    requests = [{**DEFAULTS, **fields, "seed": options.seed + i} for i, fields in enumerate(GALLERY)]
    examples = task_examples({name for name, _ in models[1:]})
    edits = [{**DEFAULTS, **example.fields, "seed": options.seed + i} for i, example in enumerate(examples)]
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with running_server(None, models, "auto", options.out / "triton.log") as url:
        ready = time.monotonic()
        with Client(url) as client:
            client.stream(lambda event: None, **requests[0])
        first = time.monotonic()
        answers = ask_all(url, requests, concurrency=len(requests))
        edited = ask_all(url, edits, concurrency=len(edits)) if edits else []
    sheet = _keep(options.out, answers, examples, edited)
    seconds = max(answer.seconds for answer in answers)
    edited_seconds = max((answer.seconds for answer in edited), default=0.0)
    measures = [
        Measure("start of the server", ready - begun, "s", "lower"),
        Measure("first picture", first - ready, "s", "lower"),
        Measure("gallery", len(answers) / seconds, "images/s", "higher"),
        Measure("rows per UNet call of the gallery", rows_per_call(answers)),
        *([Measure(f"{len(edited)} pictures of the other tasks", edited_seconds, "s", "lower")] if edited else []),
    ]
    done = {"gallery": sorted(answer.seconds for answer in answers), "edited": sorted(one.seconds for one in edited)}
    lines = {name: [(when, i + 1.0) for i, when in enumerate(times)] for name, times in done.items()}
    return {
        "pictures": str(sheet),
        "server_start_seconds": round(ready - begun, 2),
        "first_picture_seconds": round(first - ready, 3),
        "images": len(answers),
        "images_per_second": round(len(answers) / seconds, 2),
        "mean_rows_per_unet_call": round(rows_per_call(answers), 2),
        "edited_images": len(edited),
        "edited_seconds": round(edited_seconds, 2),
        **told(measures, [Plot("Pictures done", "timeline", "seconds since they were asked for", "pictures", lines)]),
    }


def _keep(out: Path, answers: Sequence[Answer], examples: Sequence[Example], edited: Sequence[Answer]) -> Path:
    """Write every picture, and all of them on one sheet: the gallery, then a row for each task."""
    cells: list[tuple[str, Pixels]] = []
    for i, (fields, answer) in enumerate(zip(GALLERY, answers, strict=True)):
        path = out / f"{i:02d}-{str(fields['prompt']).replace(' ', '-')}.png"
        path.write_bytes(answer.result.images[0])
        cells.append((str(fields["prompt"]), answer.result.pixels()[0]))
    row: list[tuple[str, Pixels]] = []
    for i, (example, answer) in enumerate(zip(examples, edited, strict=True)):
        (out / f"{example.task.replace(' ', '-')}-{i}.png").write_bytes(answer.result.images[0])
        if i == 0 or examples[i - 1].task != example.task:
            cells += _filled(row)
            row = [(f"{example.task}: {name}", pixels) for name, pixels in example.shown.items()]
        row.append((f"{example.task}: {example.prompt}", answer.result.pixels()[0]))
    sheet = out / "gallery.png"
    contact_sheet([(text, Image.fromarray(pixels)) for text, pixels in cells + row]).save(sheet)
    return sheet


def _filled(row: list[tuple[str, Pixels]]) -> list[tuple[str, Pixels]]:
    """As many cells as the sheet has columns; white ones at the end."""
    white: Pixels = np.full((1, 1, 3), 255, np.uint8)
    return row + [("", white)] * (-len(row) % COLUMNS)


def contact_sheet(pictures: list[tuple[str, Image.Image]], columns: int = COLUMNS) -> Image.Image:
    """Pictures in a grid, each above its prompt."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 8) + 8, rows * (TILE + CAPTION) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, picture) in enumerate(pictures):
        x, y = 8 + (i % columns) * (TILE + 8), 8 + (i // columns) * (TILE + CAPTION)
        sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        pen.multiline_text((x, y + TILE + 2), _wrapped(prompt), fill="black")
    return sheet


def _wrapped(text: str, width: int = 32) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(lines)
