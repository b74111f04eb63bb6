"""What each kind of request takes with the server to itself."""

from __future__ import annotations

import secrets
import statistics
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from bench.traffic.loops import Send
from bench.traffic.mix import Asked, Given, Kind, Mix
from server.errors import ServerError

# Requests of a mix that are looked at for the kinds that it has.
LOOKED_AT = 2000
# Different steps of kinds that are otherwise alike: more are not measured, but put between those that are.
STEPS_MEASURED = 3
# A kind but for its steps.
Group: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Alone:
    """Seconds of kinds of requests alone: as measured, and linear in the steps between.

    Attributes:
        measured: by kind.
        share: of the requests that are of each kind.
        repetitions: what the measured ones are the medians of.
    """

    measured: Mapping[Kind, float]
    share: Mapping[Kind, float]
    repetitions: Mapping[Kind, Sequence[float]] = field(default_factory=dict)

    def seconds(self, kind: Kind) -> float:
        """Of a kind; one that is unlike all that were measured counts as the longest of them."""
        if kind in self.measured:
            return self.measured[kind]
        points = sorted((one.steps, seconds) for one, seconds in self.measured.items() if one[1:] == kind[1:])
        if not points:
            return max(self.measured.values())
        if len(points) == 1:
            return points[0][1] * kind.steps / points[0][0]
        place = min(max(bisect_left(points, (kind.steps, 0.0)), 1), len(points) - 1)
        (few, quick), (many, slow) = points[place - 1], points[place]
        return quick + (slow - quick) * (kind.steps - few) / (many - few)

    @property
    def expected(self) -> dict[Kind, float]:
        """Of every kind that the mix has."""
        return {kind: self.seconds(kind) for kind in self.share}

    def overheads(self) -> dict[str, float] | None:
        """Milliseconds of a request and of each of its steps; None where kinds differ in more than their steps."""
        if len({kind[1:] for kind in self.measured}) > 1 or len(self.measured) < 2:
            return None
        points = {kind.steps: 1e3 * seconds for kind, seconds in self.measured.items()}
        line = statistics.linear_regression(list(points), list(points.values()))
        return {"request_ms": round(line.intercept, 3), "step_ms": round(line.slope, 4)}


def examples(mix: Mix, given: Sequence[Given] = ()) -> tuple[dict[Kind, Asked], dict[Kind, float]]:
    """A request of every kind that a mix has, and the share of the requests that are of each.

    Args:
        given: what is known of the requests, where they are recorded ones.
    """
    found: dict[Kind, Asked] = {}
    counts: dict[Kind, int] = {}
    looked_at = len(given) or LOOKED_AT
    for asked in mix.requests(looked_at, given):
        found.setdefault(asked.kind, asked)
        counts[asked.kind] = counts.get(asked.kind, 0) + 1
    return found, {kind: count / looked_at for kind, count in counts.items()}


def worth_measuring(kinds: Iterable[Kind]) -> list[Kind]:
    """Of kinds that differ in their steps only, the fewest steps, the most and some between."""
    groups: dict[Group, list[Kind]] = {}
    for kind in sorted(kinds):
        groups.setdefault(kind[1:], []).append(kind)
    chosen = []
    for alike in groups.values():
        last = min(len(alike), STEPS_MEASURED) - 1
        chosen += [alike[round(i * (len(alike) - 1) / max(1, last))] for i in range(last + 1)]
    return chosen


async def measure_alone(send: Send, mix: Mix, repeats: int, given: Sequence[Given] = ()) -> Alone:
    """Ask for each kind by itself; medians.

    Raises:
        ServerError: one was not answered with images.
    """
    found, share = examples(mix, given)
    taken = {kind: await _repeated(send, found[kind], repeats) for kind in worth_measuring(found)}
    return Alone({kind: statistics.median(seconds) for kind, seconds in taken.items()}, share, taken)


async def _repeated(send: Send, example: Asked, repeats: int) -> list[float]:
    seconds = []
    # An earlier run may have left its answers in the server's cache.
    first_seed = secrets.randbelow(2**32)
    # The first one finds prompts and tables unread.
    for number in range(repeats + 1):
        fields = {**example.fields, "seed": first_seed + number, "request_id": f"alone-{id(example)}-{number}"}
        outcome = await send(replace(example, fields=fields), time.monotonic())
        if outcome.status != "ok":
            raise ServerError(f"a request alone on the server ended as {outcome.status}: {outcome.message}")
        seconds.append(outcome.seconds)
    return seconds[1:] or seconds
