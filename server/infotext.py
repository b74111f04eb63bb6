"""What a picture's file says of how it was drawn: AUTOMATIC1111's `parameters` text, and our own fields as JSON.

The JSON repeats the picture; the text is for the tools that read A1111's.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from server.errors import InvalidRequest
from server.fields import ARRAY_OF, FIELD_BY_NAME
from server.request import Request
from server.sampler_names import SAMPLER_BY_NAME, find_sampler, find_schedule

A1111_KEY, OWN_KEY = "parameters", "aquatint"
# Fields that are about one request's way, not about its pictures.
NOT_KEPT = (
    *("num_images", "output_format", "encoding", "priority", "timeout_ms", "progress_interval", "preview_interval"),
    *("stream_images", "partial_result", "client_id", "request_id", "model"),
    *(*ARRAY_OF, *ARRAY_OF.values()),
)
_PAIR = re.compile(r'(\w[\w ]*):("(?:\\.|[^\\"])+"| "(?:\\.|[^\\"])+"|[^,]*)')
# Where A1111's label is not ours with capitals.
SCHEDULE_TITLES = {
    None: "Automatic",
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "ddim_uniform": "DDIM",
}
_NOISE_LABELS = {"cpu": "CPU", "philox": "NV"}


def picture_fields(request: Request, index: int) -> dict[str, Any]:
    """The fields that draw image `index` of a request again, alone, but for the pictures that came with it.

    Those that have their defaults are left out.
    """
    kept = [name for name in FIELD_BY_NAME if name not in NOT_KEPT]
    given = {name: getattr(request, name) for name in kept}
    given = {name: value for name, value in given.items() if value not in (FIELD_BY_NAME[name].default, ())}
    given = {name: value for name, value in given.items() if value or name not in ("hires_height", "hires_width")}
    seed, subseed = request.seeds(index)
    return {**given, "seed": seed} | ({"subseed": subseed} if request.subseed_strength else {})


def file_texts(request: Request, index: int, checkpoint: str) -> dict[str, str]:
    """Key and text of each note in the file of image `index`."""
    fields = json.dumps(picture_fields(request, index))
    return {A1111_KEY: infotext(request, index, checkpoint), OWN_KEY: fields}


def infotext(request: Request, index: int, checkpoint: str) -> str:
    """A1111's text: the prompt, the negative prompt, and a line of `Name: value` pairs."""
    varied = request.subseed_strength > 0
    seed, subseed = request.seeds(index)
    sampler = SAMPLER_BY_NAME[request.sampler]
    pairs = {
        "Steps": request.num_inference_steps,
        "Sampler": sampler.aliases[0] if sampler.aliases else sampler.name,
        "Schedule type": SCHEDULE_TITLES.get(request.schedule, str(request.schedule).replace("_", " ").title()),
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model": checkpoint,
        "Variation seed": subseed if varied else None,
        "Variation seed strength": f"{request.subseed_strength:g}" if varied else None,
        "Clip skip": request.clip_skip + 1 if request.clip_skip else None,
        "ENSD": request.noise_seed_delta or None,
        "Denoising strength": None if request.strength is None else f"{request.strength:g}",
        "Eta": None if request.eta is None else f"{request.eta:g}",
        "RNG": _NOISE_LABELS[request.noise_source],
        "Version": "aquatint",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items() if value is not None)
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return f"{request.prompt}{negative}\n{line}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


def read_fields(data: bytes) -> dict[str, Any]:
    """The fields of a picture that we or A1111 drew.

    Raises:
        InvalidRequest: it is no picture, or says nothing that can be read of how it was drawn.
    """
    try:
        texts = Image.open(io.BytesIO(data)).info
    except OSError:  # Pillow's own kind for what it cannot identify is one
        raise InvalidRequest("the file is no picture, or a part of one; give a PNG that a server has drawn") from None
    if OWN_KEY in texts:
        return _own_fields(str(texts[OWN_KEY]))
    if A1111_KEY in texts:
        return parse_infotext(str(texts[A1111_KEY]))
    raise InvalidRequest("the picture does not say how it was drawn; give a PNG as the server wrote it")


def _own_fields(note: str) -> dict[str, Any]:
    try:
        fields = json.loads(note)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequest("the picture's note is damaged; give a PNG as the server wrote it")
    return {name: value for name, value in fields.items() if name in FIELD_BY_NAME}


def parse_infotext(text: str) -> dict[str, Any]:
    """Fields from A1111's text; pairs that no field stands for are left out. Its prompts are in A1111's syntax.

    A text without `RNG` is from a GPU, whose stream `philox` is.

    Raises:
        InvalidRequest: a value that is no number where A1111 writes one.
    """
    *lines, last = text.strip().split("\n")
    if "Steps:" not in last:
        lines, last = [*lines, last], ""
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt: ")
    pairs = {name.strip(): _unquoted(value.strip()) for name, value in _PAIR.findall(last)}
    fields: dict[str, Any] = {
        "prompt": prompt.removeprefix("\n"),
        "negative_prompt": negative,
        "prompt_syntax": "a1111",
    }
    for name, field, kind in _NUMBERS:
        if name in pairs:
            fields[field] = _number(name, pairs[name], kind)
    if match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", "")):
        fields |= {"width": int(match[1]), "height": int(match[2])}
    if "clip_skip" in fields:
        fields["clip_skip"] -= 1
    return fields | _named(pairs)


_NUMBERS: tuple[tuple[str, str, Any], ...] = (
    ("Steps", "num_inference_steps", int),
    ("CFG scale", "guidance_scale", float),
    ("Seed", "seed", int),
    ("Variation seed", "subseed", int),
    ("Variation seed strength", "subseed_strength", float),
    ("ENSD", "noise_seed_delta", int),
    ("Eta", "eta", float),
    ("Eta DDIM", "eta", float),
    ("Clip skip", "clip_skip", int),
)


def _number(name: str, text: str, kind: Any) -> Any:
    try:
        return kind(text)
    except ValueError:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise InvalidRequest(
            f"the picture's {name} is {shown!r}, which is no number; give the options yourself"
        ) from None


def _named(pairs: Mapping[str, str]) -> dict[str, Any]:
    found = find_sampler(pairs.get("Sampler", ""))
    schedule = find_schedule(pairs.get("Schedule type", "")) or (found[1] if found else None)
    fields = {"sampler": found[0] if found else None, "schedule": schedule}
    if pairs:
        fields["noise_source"] = "cpu" if pairs.get("RNG") == "CPU" else "philox"
    return {name: value for name, value in fields.items() if value is not None}


def _unquoted(value: str) -> str:
    """JSON strings as they read; anything else as it is."""
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
