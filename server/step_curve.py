"""How long a UNet call takes by its rows: what the row cap and every prediction of finish times rest on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# A cap beyond saturation only slows everybody in the call down: this share of the best throughput is enough.
ENOUGH = 0.95
# Of a new measurement, in the speed of calls of any size.
WEIGHT = 0.1
# Of a new measurement, in what calls of its own size take besides. Much less, because a cap that moved with every slow
# spell would stay there: sizes beyond it are not called any more, so that nothing would tell that they are quick again.
SHAPE_WEIGHT = 0.01
# A call that took longer than so many times what was expected is counted as that: something else held it up.
OUTLIER = 3.0


# The cap is found anew when measurements have moved the curve by so much.
WORTH_A_CAP = 0.02


class StepCurve:
    """Seconds of a call by rows, linear between measured points and in proportion beyond them.

    Args:
        points: (rows, seconds), in any order; without any, calls take no time and the cap is whatever is allowed.
        batch_sizes: rows that the engine takes; a call of fewer is padded. Empty means any.
        cap: rows that calls are filled up to whatever the curve says; 0 leaves it to the curve.

    Raises:
        ValueError: rows or seconds that are not positive.
    """

    def __init__(self, points: Sequence[tuple[int, float]] = (), batch_sizes: Sequence[int] = (), cap: int = 0) -> None:
        if any(rows < 1 or not seconds > 0 for rows, seconds in points):
            raise ValueError(f"a step curve has positive rows and seconds, not {list(points)}")
        self._seconds = dict(sorted(points))
        self._rows = list(self._seconds)
        self._sizes = sorted(batch_sizes)
        self._cap = cap
        self._caps: dict[int, int] = {}
        self._moved = 0.0

    def padded(self, rows: int) -> int:
        """Rows of the call that serves so many."""
        place = bisect_left(self._sizes, rows)
        return self._sizes[place] if place < len(self._sizes) else rows

    def seconds(self, rows: int) -> float:
        """What a call that serves so many rows takes; 0 while nothing is known."""
        return self._at(self.padded(rows))

    def _at(self, rows: int) -> float:
        known = self._rows
        if not known:
            return 0.0
        place = bisect_left(known, rows)
        if place < len(known) and known[place] == rows:
            return self._seconds[rows]
        if place == 0:
            return self._seconds[known[0]]
        if place == len(known):
            return self._seconds[known[-1]] * rows / known[-1]
        low, high = known[place - 1], known[place]
        part = (rows - low) / (high - low)
        return self._seconds[low] * (1 - part) + self._seconds[high] * part

    def row_cap(self, max_rows: int) -> int:
        """The fewest rows, at least 2, whose rows per second come within `ENOUGH` of the best up to `max_rows`."""
        if self._cap:
            return min(self._cap, max_rows)
        caps = self._caps
        if max_rows not in caps:
            sizes = [size for size in (self._sizes or range(2, max_rows + 1)) if 2 <= size <= max_rows] or [max_rows]
            if not self._rows:
                return max(sizes)
            rates = {size: size / self.seconds(size) for size in sizes}
            best = max(rates.values())
            caps[max_rows] = min(size for size, rate in rates.items() if rate >= ENOUGH * best)
        return caps[max_rows]

    def observe(self, rows: int, seconds: float) -> None:
        """Take a measured call of so many (padded) rows into account."""
        if not seconds > 0:
            return
        expected = self._at(rows)
        if expected:
            over = min(seconds / expected, OUTLIER) - 1
            found = {known: value * (1 + WEIGHT * over) for known, value in self._seconds.items()}
            self._seconds = {**found, rows: expected * (1 + (WEIGHT + SHAPE_WEIGHT) * over)}
            self._moved += (WEIGHT + SHAPE_WEIGHT) * abs(over)
        else:
            self._seconds, self._moved = {rows: seconds}, 1.0
        # Last, and at once: other threads read without a lock.
        self._rows = sorted(self._seconds)
        if self._moved > WORTH_A_CAP:
            self._caps, self._moved = {}, 0.0
