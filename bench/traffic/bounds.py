"""Where the figures of a load lie: an interval for each, by its name in the measures, at `intervals.CONFIDENCE`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.traffic.asking import Outcome
from bench.traffic.bisection import by_spread, wilson
from bench.traffic.intervals import Interval, can_be_told, percentile_interval, rate_interval
from bench.traffic.latencies import SHARES
from bench.traffic.tally import STRETCHES, Limit, allowed, span

# Of a figure that is a part of the requests.
DIGITS = 5


def bounds(outcomes: Sequence[Outcome], alone: Limit, slo_ms: float | None = None) -> dict[str, Interval]:
    """Of throughput, goodput and shares, and of the percentiles that so many requests tell.

    Args:
        outcomes: in order of sending.
        alone: seconds of a request alone.
        slo_ms: an absolute limit, if there is one.
    """
    ok = [outcome for outcome in outcomes if outcome.status == "ok"]
    found = {"throughput": _rate(outcomes, ok)}
    for stretch in STRETCHES:
        in_time = [o for o in ok if o.seconds <= stretch * alone(o.asked)]
        found[f"goodput at {stretch:g}x"] = _rate(outcomes, in_time)
    previews = [o.first_preview - o.intended for o in outcomes if o.first_preview is not None]
    found |= _percentiles("latency", [o.seconds for o in ok])
    found |= _percentiles("first preview", previews)
    found |= _percentiles("sent late", [o.sent - o.intended for o in outcomes])
    found["refused or expired"] = _share(o.status in ("refused", "expired") for o in outcomes)
    found["failed"] = _share(o.status not in allowed(o.asked, broken=False, bounded=True) for o in outcomes)
    if slo_ms is not None:
        name = f"in {slo_ms:g} ms"
        found[f"goodput {name}"] = _rate(outcomes, [o for o in ok if o.seconds <= slo_ms / 1e3])
        found[f"share {name}"] = _share(in_time_of(outcomes, slo_ms))
    return found


def in_time_of(outcomes: Sequence[Outcome], slo_ms: float) -> list[bool]:
    """Whether each was served within a limit, of all that were sent and not left by their own clients."""
    counted = [o for o in outcomes if o.status not in ("left", "cancelled") and not o.asked.malformed]
    return [o.status == "ok" and o.seconds <= slo_ms / 1e3 for o in counted]


def _rate(outcomes: Sequence[Outcome], served: Sequence[Outcome]) -> Interval:
    begun = min((o.intended for o in outcomes), default=0.0)
    low, high = rate_interval([(o.ended, o.asked.images) for o in served], begun, begun + span(outcomes))
    return round(low, 4), round(high, 4)


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, Interval]:
    found = {}
    for share in SHARES:
        if can_be_told(share, len(seconds)):
            low, high = percentile_interval(seconds, share)
            found[f"{name} p{100 * share:g}"] = round(max(0.0, 1e3 * low), 3), round(1e3 * high, 3)
    return found


def _share(happened: Iterable[bool]) -> Interval:
    seen = list(happened)
    low, high = wilson(sum(seen) / max(1, len(seen)), by_spread(seen))
    return round(low, DIGITS), round(high, DIGITS)
