"""What each call of a job is conditioned on: prompts to chunks, chunks to embeddings, embeddings to the calls' rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from server.prompt import Fragment, parse_composition, parse_emphasis
from server.prompt_dialects import parse_emphasis_comfy, parse_emphasis_compel
from server.prompt_schedule import parse_schedule
from server.request import Request

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """The rows of one job in one call.

    Attributes:
        positives: (tokens, width) of each positive row; several where prompts are composed with AND.
        negative: of the negative row; None where the call is not guided.
        scales: guidance of each positive row.
    """

    positives: tuple[Array, ...]
    negative: Array | None
    scales: tuple[float, ...]

    @property
    def rows(self) -> int:
        return len(self.positives) + (self.negative is not None)


class Text(NamedTuple):
    """What is encoded: a text, its syntax, and how many of the text encoder's last layers are left out."""

    text: str
    syntax: str
    clip_skip: int


@dataclass(frozen=True, slots=True)
class Wording:
    """The texts of one call: text and guidance of each part of the prompt, and the negative one where it is needed."""

    positives: tuple[tuple[Text, float], ...]
    negative: Text | None

    @property
    def texts(self) -> list[Text]:
        return [text for text, _ in self.positives] + ([self.negative] if self.negative is not None else [])


def guided_calls(request: Request, calls: int) -> list[bool]:
    """Which calls are guided: an interval whose ends are parts of all calls, Kynkaanniemi et al. (2024)."""
    # Rounded, because 0.3 in float32 is a little more than 0.3.
    first, end = round(request.guidance_start * calls, 4), round(request.guidance_end * calls, 4)
    return [request.guided and first <= call < end for call in range(calls)]


def wordings(request: Request, calls: int) -> list[Wording]:
    """What each call says. Prompts change between calls only in A1111's syntax.

    `clip_skip` is for both prompts, as in A1111; without a syntax only for the positive one, as in diffusers.
    """
    syntax, skip = request.prompt_syntax, request.clip_skip
    if syntax.startswith("a1111"):
        parts = [(_by_call(text, calls), weight) for text, weight in parse_composition(request.prompt)]
        negative = _by_call(request.negative_prompt, calls)
    else:
        parts, negative = [([request.prompt] * calls, 1.0)], [request.negative_prompt] * calls
    found = []
    for call, guided in enumerate(guided_calls(request, calls)):
        guidance = request.guidance_scale if guided else 1.0
        positives = tuple((Text(texts[call], syntax, skip), guidance * weight) for texts, weight in parts)
        # A composition is a difference from the negative prompt, whatever the guidance.
        needed = guided or len(positives) > 1
        opposite = Text(negative[call], syntax, skip if syntax != "none" else 0)
        found.append(Wording(positives, opposite if needed else None))
    return found


def _by_call(text: str, calls: int) -> list[str]:
    found: list[str] = []
    for end, said in parse_schedule(text, calls):
        found += [said] * (end - len(found))
    return found[:calls]


def fragments(text: str, syntax: str) -> list[Fragment]:
    """The weighted pieces of a text."""
    if syntax.startswith("a1111"):
        return parse_emphasis(text)
    if syntax in ("comfy", "compel"):
        return parse_emphasis_comfy(text) if syntax == "comfy" else parse_emphasis_compel(text)
    return [Fragment(text, 1.0)]


def conditions(said: Sequence[Wording], embeddings: Mapping[Text, Array]) -> tuple[Condition, ...]:
    """One condition per call; calls that say the same share theirs.

    Args:
        embeddings: (tokens, width) of every text, all of one length.
    """
    made: dict[Wording, Condition] = {}
    for wording in said:
        if wording not in made:
            made[wording] = Condition(
                tuple(embeddings[text] for text, _ in wording.positives),
                None if wording.negative is None else embeddings[wording.negative],
                tuple(guidance for _, guidance in wording.positives),
            )
    return tuple(made[wording] for wording in said)
