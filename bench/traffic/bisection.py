"""The highest rate at which enough requests are in time, from trials that are chance, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.traffic.border import enclosed

# Places that a search moves by at first.
STRIDE = 4
# Of an interval.
CONFIDENCE = 0.95
# Requests that follow one another wait together, so they do not count as that many trials: whether they are in time is
# averaged over so many parts of a run at most, and the spread of the averages tells how many of them are worth one.
PARTS = 20
# Fewer tell no spread; each is so many times as long as requests wait together at most.
LEAST_PARTS = 5
PART = 2
# Times the border, and parts of it, at which trials tell where it lies: further off the curve is another.
NEAR = 1.5


def highest_passing(passes: Callable[[int], bool], start: int, top: int, stride: int = STRIDE) -> int:
    """The highest of 0 to `top` that passes, -1 if none does, where all up to some number pass and none beyond it.

    Strides from `start`, further each time, until one passes and one does not, then bisects.
    """
    low, high = -1, top + 1
    place = min(max(start, 0), top)
    while high - low > 1:
        if passes(place):
            low = place
        else:
            high = place
        if low >= 0 and high <= top:
            place = (low + high) // 2
        else:
            place = min(low + stride, top) if low >= 0 else max(high - stride, 0)
            stride *= 2
    return low


def wilson(share: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Where a probability lies, two-sided, of which `share` was seen in so many independent trials (Wilson, 1927)."""
    if count <= 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def student(confidence: float, freedom: int) -> float:
    """The two-sided quantile of Student's t over the normal one, by the expansion of Abramowitz & Stegun (26.7.5)."""
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    terms = (
        (z**2 + 1) / 4,
        (5 * z**4 + 16 * z**2 + 3) / 96,
        (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / 384,
        (79 * z**8 + 776 * z**6 + 1482 * z**4 - 1920 * z**2 - 945) / 92160,
    )
    return 1.0 + math.fsum(term / float(freedom) ** power for power, term in enumerate(terms, 1))


def needed(together: float) -> int:
    """Requests without which there is no telling how much their fates differ."""
    return LEAST_PARTS * max(2, math.ceil(PART * together))


def by_spread(in_time: Sequence[bool], together: float = 1.0, confidence: float = CONFIDENCE) -> float:
    """How many independent trials these are worth in an interval, by the spread of the averages of parts; at most all.

    Too many where late requests come in few runs; enough to end a trial by.

    Args:
        together: requests that follow one another and may wait together.
    """
    share = statistics.fmean(in_time) if in_time else 0.0
    parts = min(PARTS, len(in_time) // max(2, math.ceil(PART * together)))
    if share in (0.0, 1.0):
        return float(len(in_time))
    if parts < LEAST_PARTS:
        return len(in_time) / together
    size = len(in_time) // parts
    means = [statistics.fmean(in_time[i * size : (i + 1) * size]) for i in range(parts)]
    inflation = statistics.variance(means) * size / (share * (1 - share))
    return len(in_time) / max(1.0, inflation) / student(confidence, parts - 1) ** 2


def independent(in_time: Sequence[bool], together: float = 1.0) -> float:
    """How many independent trials these are worth: `by_spread`, and at most one for each part, where any may wait."""
    return min(by_spread(in_time, together), len(in_time) / (PART * together if together > 1 else 1.0))


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a load.

    Attributes:
        rate: requests a second.
        seed: of its arrivals.
        counted, in_time: requests.
        worth: independent trials that the requests are worth.
    """

    rate: float
    seed: int
    counted: int
    in_time: int
    worth: float

    @classmethod
    def of(cls, rate: float, seed: int, in_time: Sequence[bool], together: float = 1.0) -> Trial:
        """Of requests that follow one another, of which so many may wait together."""
        return cls(rate, seed, len(in_time), sum(in_time), independent(in_time, together))

    @property
    def share(self) -> float:
        """In time."""
        return self.in_time / self.counted

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share in time lies, at about `CONFIDENCE`."""
        return wilson(self.share, self.worth)


@dataclass(frozen=True, slots=True)
class Standing:
    """What all trials at a rate say together: the share in time, and where it lies at about `CONFIDENCE`."""

    rate: float
    share: float
    low: float
    high: float
    counted: int

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Standing:
        counted = sum(trial.counted for trial in trials)
        share = sum(trial.in_time for trial in trials) / counted
        return cls(trials[0].rate, share, *wilson(share, sum(t.worth for t in trials)), counted)


def crossing(standings: Sequence[Standing], goal: float) -> float:
    """The rate at which the share falls to `goal`; 0 where it is never so high.

    Shares are made to fall with the rate by pooling neighbours that do not (Ayer et al., 1955), then joined by lines
    over the logarithm of the rate. Where all are higher it is the highest rate that was tried.
    """
    blocks: list[list[float]] = []
    for standing in sorted(standings, key=lambda one: one.rate):
        blocks.append([standing.share, standing.counted, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            share, count, places = blocks.pop()
            before = blocks[-1]
            total = before[1] + count
            blocks[-1] = [(before[0] * before[1] + share * count) / total, total, before[2] + places]
    shares = [share for share, _, places in blocks for _ in range(int(places))]
    rates = sorted(standing.rate for standing in standings)
    passing = sum(share >= goal for share in shares)
    if passing in (0, len(rates)):
        return rates[-1] if passing else 0.0
    part = (shares[passing - 1] - goal) / (shares[passing - 1] - shares[passing])
    low, high = rates[passing - 1], rates[passing]
    return float(low * (high / low) ** part)


@dataclass(slots=True)
class Search:
    """Trials at rates on a geometric grid, until the border is found, tried repeatedly and enclosed.

    Attributes:
        attempt: makes a trial at a rate, with arrivals of a seed.
        goal: share of the requests that must be in time.
        highest: rate, the top of the grid.
        apart: a rate over the next lower one.
        places: of the grid.
        repeats: trials at either side of the border.
        ended: whether there is no time for more trials.
        trials: that were made, by place.
        complete: whether nothing was left out for want of time.
    """

    attempt: Callable[[float, int], Trial]
    goal: float
    highest: float
    apart: float
    places: int
    repeats: int
    ended: Callable[[], bool] = lambda: False
    trials: dict[int, list[Trial]] = field(default_factory=dict)
    complete: bool = True

    def run(self, start: float) -> None:
        """Make trials, the first near the rate `start`."""
        place = self.places + round(math.log(start / self.highest, self.apart))
        border = highest_passing(self._passes, place, self.places)
        while (following := self._next(border)) is not None and self._try(following):
            border = self._border()

    def standings(self) -> list[Standing]:
        """By ascending rate."""
        return [Standing.of(trials) for _, trials in sorted(self.trials.items())]

    @property
    def value(self) -> float:
        return crossing(self.standings(), self.goal) if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float | None]:
        """Where the border lies, at about `CONFIDENCE`; 0 and None where it may be beyond all that were tried.

        In 40 to 60 simulated searches (600 requests, 3 seeds, rates 5 % apart) on each of six step-level queues it held
        the true one in 95 % or more on five of them, and in 82 % on the worst: 8 slots, all requests of 20 steps.
        """
        value, made = self.value, [trial for trials in self.trials.values() for trial in trials]
        beside = {
            max((trial.rate for trial in made if trial.rate <= value), default=0.0),
            min((trial.rate for trial in made if trial.rate > value), default=0.0),
        }
        near = [one for one in made if value / NEAR <= one.rate <= value * NEAR or one.rate in beside]
        low, high = enclosed(near, self.goal, CONFIDENCE)
        if not low or high is None:
            least, most = enclosed(made, self.goal, CONFIDENCE)
            low, high = low or least, most if high is None else high
        return min(low, value), None if high is None else max(high, value)

    @property
    def low(self) -> float:
        return self.interval[0]

    @property
    def high(self) -> float | None:
        return self.interval[1]

    @property
    def open(self) -> bool:
        """Whether the highest rate of all passes, so that the border is above."""
        return self.places in self.trials and self._border() == self.places

    def _rate(self, place: int) -> float:
        return float(self.highest * self.apart ** (place - self.places))

    def _try(self, place: int) -> bool:
        """False when there is no time."""
        if self.ended():
            self.complete = False
            return False
        trial = self.attempt(self._rate(place), len(self.trials.get(place, ())))
        self.trials.setdefault(place, []).append(trial)
        return True

    def _passes(self, place: int) -> bool:
        # Without time the search goes on downwards with what is known, to an end.
        return (place in self.trials or self._try(place)) and Standing.of(self.trials[place]).share >= self.goal

    def _border(self) -> int:
        """The highest place tried that passes by all trials; -1 for none."""
        value = self.value
        return max((place for place in self.trials if self._rate(place) <= value * (1 + 1e-9)), default=-1)

    def _next(self, border: int) -> int | None:
        """Where a trial tells most: beside the border, then further off, until the border is enclosed."""
        for place in (border, border + 1):
            if 0 <= place <= self.places and len(self.trials.get(place, ())) < self.repeats:
                return place
        low, high = self.interval
        for step in (1, 2, 4, 8):
            if border >= 0 and not low and border - step >= 0 and border - step not in self.trials:
                return border - step
            if high is None and border + 1 + step <= self.places and border + 1 + step not in self.trials:
                return border + 1 + step
        return None
