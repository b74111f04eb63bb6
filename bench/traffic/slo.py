"""What "in time" means: within so many times the latency alone, or within so many seconds."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from server.errors import ServerError

Kind = TypeVar("Kind")
# Share of the requests that must be in time.
ATTAINMENT = 0.95
MULTIPLE = 3.0
# Of a sum of shares.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Slo:
    """A limit on latency; exactly one of the two is given.

    Attributes:
        multiple: of the latency of a request of that kind alone.
        seconds: the same for all.
    """

    multiple: float | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.multiple:g}x" if self.seconds is None else f"{1e3 * self.seconds:g} ms"

    def limit(self, alone: float) -> float:
        """Seconds that a request may take which takes `alone` by itself."""
        return self.seconds if self.seconds is not None else (self.multiple or 0.0) * alone

    def check(self, alone: Mapping[Kind, float], share: Mapping[Kind, float], attainment: float) -> None:
        """See that enough requests are in time at least alone.

        Args:
            alone: seconds of each kind of request.
            share: of the requests that are of each kind.

        Raises:
            ServerError: they are not, so that no load and no number of servers meets the limit.
        """
        feasible = sum(share[kind] for kind, seconds in alone.items() if seconds <= self.limit(seconds))
        if feasible < attainment - ROUNDING:
            slowest = 1e3 * max(alone.values())
            raise ServerError(
                f"nothing meets {self}: even alone the longest requests take {slowest:.0f} ms, and only {feasible:.0%} "
                f"are in time where {attainment:.0%} must be; allow more, or ask for fewer steps"
            )


def add_slo_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is in time")
    group.add_argument(
        "--slo", type=_positive, nargs="+", help=f"times its latency alone, as 2 3 5 ({MULTIPLE:g} if nothing is given)"
    )
    group.add_argument("--slo-ms", type=_positive, nargs="+", help="milliseconds, the same for all requests")
    group.add_argument("--attainment", type=float, default=ATTAINMENT, help="share of the requests (%(default)s)")


def slos_of(options: argparse.Namespace) -> list[Slo]:
    """The limits that the options name, the widest multiple first.

    Raises:
        ServerError: the share is none.
    """
    if not 0 < options.attainment < 1:
        raise ServerError(f"--attainment is {options.attainment:g}: give a share between 0 and 1, such as 0.95")
    multiples = _descending(options.slo or ([] if options.slo_ms else [MULTIPLE]))
    return [*(Slo(multiple=k) for k in multiples), *(Slo(seconds=ms / 1e3) for ms in _descending(options.slo_ms or []))]


def _descending(values: Iterable[float]) -> list[float]:
    return sorted(set(values), reverse=True)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return value
