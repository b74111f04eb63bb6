"""What a load amounts to: latencies by outcome, goodput, and whether every request was accounted for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from bench.traffic.asking import Outcome, Status
from bench.traffic.latencies import milliseconds
from bench.traffic.mix import Asked

# Seconds of a request.
Limit: TypeAlias = Callable[[Asked], float]
# A request is served in time when it ends within so many times its latency alone.
STRETCHES = (1.5, 2.0, 3.0, 4.0, 5.0)


def span(outcomes: Sequence[Outcome]) -> float:
    """Seconds from the first intended sending to the last end."""
    return max(o.ended for o in outcomes) - min(o.intended for o in outcomes) if outcomes else 0.0


def latencies(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float]]:
    """Milliseconds from the intended sending, by outcome."""
    found: dict[str, list[float]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.status, []).append(outcome.seconds)
    return {status: milliseconds(seconds) for status, seconds in sorted(found.items())}


def goodput(outcomes: Sequence[Outcome], limit: Limit) -> float:
    """Images a second of requests that were answered within the seconds that they may take."""
    seconds = span(outcomes)
    served = sum(o.asked.images for o in outcomes if o.status == "ok" and o.seconds <= limit(o.asked))
    return served / seconds if seconds else 0.0


def goodputs(outcomes: Sequence[Outcome], alone: Limit) -> dict[str, float]:
    """By how many times its seconds alone a request may take."""

    def stretched(stretch: float) -> Limit:
        return lambda asked: stretch * alone(asked)

    return {f"{stretch:g}x": round(goodput(outcomes, stretched(stretch)), 3) for stretch in STRETCHES}


def images_per_second(outcomes: Sequence[Outcome]) -> float:
    seconds = span(outcomes)
    return sum(o.asked.images for o in outcomes if o.status == "ok") / seconds if seconds else 0.0


def requests_per_second(outcomes: Sequence[Outcome]) -> float:
    """That got their images."""
    seconds = span(outcomes)
    return sum(o.status == "ok" for o in outcomes) / seconds if seconds else 0.0


def by_steps(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Latencies in milliseconds of the requests that got their images, by step count."""
    return _by(outcomes, lambda asked: asked.kind.steps)


def by_task(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """The same by task."""
    return _by(outcomes, lambda asked: asked.kind.task)


def _by(outcomes: Sequence[Outcome], name: Callable[[Asked], Any]) -> dict[str, dict[str, float]]:
    found: dict[Any, list[float]] = {}
    for outcome in outcomes:
        if outcome.status == "ok":
            found.setdefault(name(outcome.asked), []).append(outcome.seconds)
    return {str(one): milliseconds(seconds) for one, seconds in sorted(found.items())}


def open_at_most(outcomes: Sequence[Outcome]) -> int:
    """Requests that were sent and not ended at the same time."""
    changes = sorted([(o.sent, 1) for o in outcomes] + [(o.ended, -1) for o in outcomes])
    return max(itertools.accumulate(change for _, change in changes), default=0)


def messages(outcomes: Iterable[Outcome], kept: int = 3) -> dict[str, Any]:
    """How often each failure came, with examples of its words."""
    found: dict[str, Any] = {}
    for outcome in outcomes:
        if outcome.message:
            entry = found.setdefault(outcome.status, {"count": 0, "examples": []})
            entry["count"] += 1
            if len(entry["examples"]) < kept and outcome.message not in entry["examples"]:
                entry["examples"].append(outcome.message)
    return found


def allowed(asked: Asked, *, broken: bool, bounded: bool) -> set[Status]:
    """What may become of a request.

    Args:
        broken: whether the server was killed on the way.
        bounded: whether there may be more requests than the server takes.
    """
    found: set[Status] = {"invalid"} if asked.malformed else {"ok"}
    if asked.ending in ("cancel", "close"):
        found |= {"left"}
    if asked.ending == "id":
        found |= {"cancelled"}
    if asked.fields.get("timeout_ms"):
        found |= {"expired", "refused"}
    if bounded and not asked.malformed:
        found |= {"refused"}
    return found | {"disconnected"} if broken else found


def unaccounted(
    asked: Iterable[Asked], outcomes: Sequence[Outcome], *, broken: bool = False, bounded: bool = False
) -> list[str]:
    """One sentence for each request that has not exactly one outcome, or one that it may not have."""
    counts = Counter(outcome.asked.number for outcome in outcomes)
    sent = {one.number for one in asked}
    wrong = [f"request {number} has {counts[number]} outcomes" for number in sorted(sent) if counts[number] != 1]
    wrong += [f"request {number} was never asked" for number in sorted(set(counts) - sent)]
    for outcome in outcomes:
        if outcome.status not in allowed(outcome.asked, broken=broken, bounded=bounded):
            one = outcome.asked
            wrong.append(
                f"request {one.number} ({one.face}, {'malformed' if one.malformed else one.ending}) ended as "
                f"{outcome.status} after {outcome.seconds:.2f} s: {outcome.message}"
            )
    return wrong
