"""The main job, start to end: a gallery of mixed requests through the real Triton, with figures."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from bench.serving import ask_all, rows_per_call, running_server
from server.client import Client
from server.request import Value

GALLERY: tuple[dict[str, Value], ...] = (
    {"prompt": "a red circle on a blue background", "sampler": "dpmpp_2m", "num_inference_steps": 20},
    {"prompt": "a large yellow star on a purple background", "sampler": "euler", "num_inference_steps": 30},
    {"prompt": "a white heart on a red background", "sampler": "ddim", "num_inference_steps": 25},
    {"prompt": "a small green square on the left on an orange background", "sampler": "euler_ancestral"},
    {"prompt": "a cyan ring above a pink triangle on a black background", "sampler": "dpmpp_2m"},
    {"prompt": "a black diamond left of an orange cross on a white background", "schedule": "karras"},
    {"prompt": "a picture of a pink heart on a cyan background", "sampler": "euler", "schedule": "karras"},
    {"prompt": "a purple cross at the top on a yellow background", "guidance_scale": 3.0},
    {"prompt": "an orange star on a green background", "height": 192, "width": 192},
    {"prompt": "a blue triangle above a yellow circle on a pink background", "height": 192, "width": 192},
)
DEFAULTS: dict[str, Value] = {"num_inference_steps": 20, "guidance_scale": 2.0}
TILE, CAPTION = 192, 42


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=Path("out/export"), help="a folder written by `python -m export`")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=7)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start a server, draw one picture alone, then the gallery all at once; write the pictures."""
    requests = [{**DEFAULTS, **fields, "seed": options.seed + i} for i, fields in enumerate(GALLERY)]
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with running_server(None, options.model, "auto", options.out / "triton.log") as url:
        ready = time.monotonic()
        with Client(url) as client:
            client.stream(lambda event: None, **requests[0])
        first = time.monotonic()
        answers = ask_all(url, requests, concurrency=len(requests))
    pictures = []
    for i, (fields, answer) in enumerate(zip(requests, answers, strict=True)):
        path = options.out / f"{i:02d}-{str(fields['prompt']).replace(' ', '-')}.png"
        path.write_bytes(answer.result.images[0])
        pictures.append((str(fields["prompt"]), Image.fromarray(answer.result.pixels()[0])))
    sheet = options.out / "gallery.png"
    contact_sheet(pictures).save(sheet)
    seconds = max(answer.seconds for answer in answers)
    return {
        "pictures": str(sheet),
        "server_start_seconds": round(ready - begun, 2),
        "first_picture_seconds": round(first - ready, 3),
        "images": len(answers),
        "images_per_second": round(len(answers) / seconds, 2),
        "mean_rows_per_unet_call": round(rows_per_call(answers), 2),
    }


def contact_sheet(pictures: list[tuple[str, Image.Image]], columns: int = 5) -> Image.Image:
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
