"""A load at one rate that lasts until it is clear whether enough of its requests are in time."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.traffic.arrivals import Bursts
from bench.traffic.asking import Outcome, Status
from bench.traffic.bisection import CONFIDENCE, Trial, by_spread, needed, wilson
from bench.traffic.latencies import percentile
from bench.traffic.loops import Send
from bench.traffic.mix import SEEDS, Kind, Mix
from server.errors import ServerError

# Requests after which a trial is looked at for the first time, at least; then whenever there are twice as many.
FIRST_LOOK = 75
# Times the longest limit: of simulated queues up to 3 points too many requests are in time in the second one after an
# idle server, and less than 1 later.
SETTLING = 2.0
# Without an answer: no server, one that is not there any more, or one that is too slow.
UNANSWERED: tuple[Status, ...] = ("disconnected", "lost")
# Seconds between looks at what is overdue, while nothing is sent.
PAUSE = 0.05
# Times what comes on average.
ENOUGH = 1.5


class Gone(ServerError):
    """The server went away while it was measured."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all trials have in common.

    Attributes:
        mix: of the requests.
        limit: seconds that a kind of request may take.
        longest: seconds that the slowest request may take; those that come within as long of one another may wait
            together.
        share: of the requests that must be in time.
        least_seconds: of a trial that ends with enough in time; shorter ones do not notice a queue that grows slowly.
        most: requests that count, unless `least_seconds` has more.
        variation: deviation of the times between arrivals over their mean; 1 is Poisson.
    """

    mix: Mix
    limit: Callable[[Kind], float]
    longest: float
    share: float
    least_seconds: float
    most: int
    variation: float = 1.0

    @property
    def settling(self) -> float:
        """Seconds at the beginning whose requests do not count: they find the server idle."""
        return SETTLING * self.longest

    def together(self, rate: float) -> float:
        """Requests that may wait together at a rate."""
        return max(1.0, rate * self.longest)

    def counted(self, rate: float) -> int:
        """Requests that count in the longest trial at a rate."""
        return max(self.most, math.ceil(rate * self.least_seconds), needed(self.together(rate)))

    def drawn(self, rate: float, seed: int) -> Mix:
        """Other requests for each trial, so that no two share their chance."""
        draw = random.Random(f"{self.mix.seed}/{rate:.6g}/{seed}")
        return replace(self.mix, seed=draw.randrange(SEEDS), name=f"{self.mix.name}-{rate:.6g}-{seed}")

    def times(self, rate: float, seed: int) -> list[float]:
        """When requests come, in seconds from the start: those that count, and others while these are decided."""
        count = self.counted(rate) + math.ceil(ENOUGH * rate * (self.settling + self.longest))
        return Bursts(rate, self.variation).times(self.drawn(rate, seed).seed, count=count)


class Judge:
    """Looks at the requests in order of sending, and at none before all earlier ones are decided.

    One that has not ended by its limit is late. Every look has its part of the risk (Bonferroni). What it finds ends a
    trial and is no more than that: what the trial is worth is for `bisection.Trial` to say.

    Args:
        share: that must be in time.
        most: requests that are looked at in the end.
        together: requests that may wait together; none are looked at before there are enough of such parts.

    Attributes:
        in_time: of those that are decided, in order of sending.
        enough: whether enough are; None while that is open.
    """

    def __init__(self, share: float, most: int, together: float = 1.0) -> None:
        self.in_time: list[bool] = []
        self.enough: bool | None = None
        self._share = share
        self._most = most
        self._together = together
        self._looks = [most]
        while self._looks[0] // 2 >= max(FIRST_LOOK, needed(together)):
            self._looks.insert(0, self._looks[0] // 2)
        self._confidence = 1 - (1 - CONFIDENCE) / len(self._looks)
        self._due: list[float] = []
        self._decided: dict[int, bool] = {}

    def sent(self, overdue: float) -> int:
        """A request is sent that is late from that time on; gives its place."""
        self._due.append(overdue)
        return len(self._due) - 1

    def ended(self, place: int, in_time: bool) -> None:
        self._decided[place] = in_time

    def look(self, now: float) -> None:
        """Take note of what is decided by then; `enough` is the finding of the last look that was due."""
        while (place := len(self.in_time)) < min(len(self._due), self._most):
            if place not in self._decided and now <= self._due[place]:
                return
            self.in_time.append(self._decided.get(place, False))
            if len(self.in_time) == self._looks[0]:
                self._looks = self._looks[1:] or [self._most + 1]
                self.enough = self._found()
                if self.enough is False:
                    return

    @property
    def done(self) -> bool:
        """Whether all are decided."""
        return len(self.in_time) >= self._most

    def _found(self) -> bool | None:
        share = sum(self.in_time) / len(self.in_time)
        low, high = wilson(share, by_spread(self.in_time, self._together, self._confidence), self._confidence)
        return True if low >= self._share else False if high < self._share else None


@dataclass(frozen=True, slots=True)
class Attempted:
    """A trial, and what its requests say besides.

    Attributes:
        outcomes: of all that were sent.
        late_sending: seconds that requests were sent after their time, of 99 % at most.
        seconds: from the first to the last.
        realised: requests a second, as they came by chance.
        errors: what those said that the server failed at.
        cached: answers that the server had already.
    """

    trial: Trial
    outcomes: Mapping[str, int]
    late_sending: float
    seconds: float
    realised: float = 0.0
    errors: tuple[str, ...] = ()
    cached: int = 0


async def attempt(send: Send, terms: Terms, rate: float, seed: int) -> Attempted:
    """Send requests at a mean rate, whatever becomes of them, until a judge has seen enough.

    A verdict that the rate is too high ends the trial at once, one that it is not only after `least_seconds`. Then
    what is open is waited for, so that the next trial finds the server idle, and does not count: nothing came after it
    that would have held it up.

    Raises:
        Gone: the server broke off, or answered nothing.
        ServerError: it refuses requests like these as invalid, or fails at more of them than may be late.
    """
    together = terms.together(rate)
    judge = Judge(terms.share, terms.counted(rate), together)
    begun = time.monotonic()
    tasks: list[asyncio.Task[Outcome]] = []
    broken = False
    mix = terms.drawn(rate, seed)

    async def one(number: int, intended: float) -> Outcome:
        nonlocal broken
        asked = mix.asked(number)
        limit = terms.limit(asked.kind)
        place = judge.sent(intended + limit) if intended - begun >= terms.settling else None
        outcome = await send(asked, intended)
        if place is not None:
            judge.ended(place, outcome.status == "ok" and outcome.seconds <= limit)
        broken = broken or outcome.status == "disconnected"
        return outcome

    def over() -> bool:
        now = time.monotonic()
        judge.look(now)
        long = now - begun >= terms.settling + terms.least_seconds
        return broken or judge.done or judge.enough is False or (judge.enough is True and long)

    # Requests keep coming until the last one that counts is decided: those that come later hold it up too.
    for number, after in enumerate(terms.times(rate, seed)):
        if await _interrupted(begun + after, over):
            outcomes = list(await asyncio.gather(*tasks))
            break
        tasks.append(asyncio.create_task(one(number, begun + after)))
    else:
        outcomes = list(await asyncio.gather(*tasks))
        judge.look(time.monotonic())
    _check(outcomes, terms.share)
    return Attempted(
        Trial.of(rate, seed, judge.in_time, together),
        dict(Counter(outcome.status for outcome in outcomes)),
        percentile([outcome.sent - outcome.intended for outcome in outcomes], 0.99),
        time.monotonic() - begun,
        len(outcomes) / (outcomes[-1].intended - begun),
        tuple(outcome.message for outcome in outcomes if outcome.status == "error"),
        sum(outcome.cached for outcome in outcomes),
    )


async def _interrupted(moment: float, over: Callable[[], bool]) -> bool:
    """Wait until a moment; true, and at once, when it is `over` before."""
    while not over():
        left = moment - time.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(min(left, PAUSE))
    return True


def _check(outcomes: Sequence[Outcome], share: float) -> None:
    gone = [outcome for outcome in outcomes if outcome.status in UNANSWERED]
    # Too much for a slow server may take longer than a client waits: that is late, and not the end.
    if any(outcome.status == "disconnected" for outcome in gone) or len(gone) == len(outcomes):
        words = gone[0].message or gone[0].status
        raise Gone(f"the server went away: {len(gone)} of {len(outcomes)} requests were not answered ({words})")
    refused = [outcome for outcome in outcomes if outcome.status in ("invalid", "wrong")]
    if refused:
        raise ServerError(f"the server does not serve requests like these: {refused[0].message}")
    errors = [outcome for outcome in outcomes if outcome.status == "error"]
    if len(errors) > (1 - share) * len(outcomes):
        raise ServerError(
            f"the server failed at {len(errors)} of {len(outcomes)} requests, more than may be late "
            f"({errors[0].message}): see its log"
        )
