"""What an accuracy run leaves: images, what they should show, and what the judge saw."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.judging.judge import Judge
from bench.judging.trials import ASPECTS, held_out, seen
from bench.loadgen.answering import Answering, picture_of
from bench.loadgen.prompts import write_captions
from bench.reporting.measures import Measure, told

HINT = (
    "no judge knows these captions; `python -m bench quality --captions FILE --real DIR --clip NAME` draws them again "
    "and gives their FID and CLIP score"
)


def told_of(answering: Answering, prompts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Where the images are, and the judge's scores where it knows all the captions."""
    captions, failures = write_captions(folder, prompts), answering.failures()
    scores = judged(prompts, {one.prompt for one in answering.answered if not one.failure}, folder / "images")
    measures = [Measure(f"accuracy {aspect}", value, "", "higher") for aspect, value in scores.items()]
    return {
        "queries": answering.counts(),
        "failures": failures,
        "images": str(folder / "images"),
        "captions": str(captions),
        "score": scores or HINT,
        **told([] if failures else measures),
    }


def judged(prompts: Sequence[str], drawn: Iterable[int], images: Path) -> dict[str, float]:
    """The parts of the images that show the colour, background and shape of their captions.

    Empty unless all captions are held-out ones of the embedded checkpoint, which the judge knows.
    """
    cases, judge = {case["caption"]: case for case in held_out()}, Judge()
    numbers = sorted(drawn)
    if not numbers or any(prompts[number] not in cases for number in numbers):
        return {}
    pictures = (np.asarray(Image.open(picture_of(images, number)).convert("RGB")) for number in numbers)
    scores = [seen(judge, cases[prompts[n]], picture) for n, picture in zip(numbers, pictures, strict=True)]
    return {aspect: statistics.fmean(score[aspect] for score in scores) for aspect in ASPECTS}
