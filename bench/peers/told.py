"""What was found of each peer, as figures that can be compared, and as series that can be drawn."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bench.peers.rounds import Rounds
from bench.reporting.measures import Measure, Plot, told
from bench.traffic.asking import Outcome
from bench.traffic.latencies import milliseconds
from engines.component import Precision

Setting: TypeAlias = Literal["single", "batch", "mixed"]
SETTINGS: tuple[Setting, ...] = ("single", "batch", "mixed")
MEANINGS: Mapping[Setting, str] = {"single": "one picture", "batch": "pictures wanted together", "mixed": "mixed load"}


@dataclass(slots=True)
class Compared:
    """A peer beside ours.

    Attributes:
        psnr: of its pictures and the reference, in dB, the least; `same` if that is enough for its precision.
        first_seconds: of the first picture, or batch, which may compile, by setting.
        rounds: by setting.
        loads: what became of the mixed load, ours and theirs, round by round.
    """

    precision: Precision
    open_seconds: float
    psnr: float = 0.0
    same: bool = False
    first_seconds: dict[Setting, float] = field(default_factory=dict)
    rounds: dict[Setting, Rounds] = field(default_factory=dict)
    loads: list[tuple[Sequence[Outcome], Sequence[Outcome]]] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        """As they stand in a result; without `settings` where the picture is another one."""
        found: dict[str, Any] = {
            "precision": self.precision,
            "psnr_db": round(self.psnr, 1),
            "same_picture": self.same,
            "open_seconds": round(self.open_seconds, 2),
            "first_seconds": {name: round(seconds, 2) for name, seconds in self.first_seconds.items()},
        }
        if self.rounds:
            found["settings"] = {name: rounds.figures() for name, rounds in self.rounds.items()}
        if self.loads:
            found["latency_ms_by_steps"] = {
                who: {str(steps): milliseconds(seconds) for steps, seconds in sorted(by_steps(outcomes).items())}
                for who, outcomes in self.all_outcomes.items()
            }
        return found

    @property
    def all_outcomes(self) -> dict[str, list[Outcome]]:
        """Of all rounds of the mixed load."""
        return {
            "ours": [outcome for ours, _ in self.loads for outcome in ours],
            "theirs": [outcome for _, theirs in self.loads for outcome in theirs],
        }

    def latency_ratios(self, steps: int) -> list[float]:
        """Theirs over ours in mean latency of the mixed load's requests of so many steps, round by round."""
        pairs = [(by_steps(ours).get(steps), by_steps(theirs).get(steps)) for ours, theirs in self.loads]
        return [statistics.mean(theirs) / statistics.mean(ours) for ours, theirs in pairs if ours and theirs]


def by_steps(outcomes: Iterable[Outcome]) -> dict[int, list[float]]:
    """Latencies in seconds."""
    found: dict[int, list[float]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.asked.kind[0], []).append(outcome.seconds)
    return found


def figures(ours: Compared, peers: Mapping[str, Compared]) -> dict[str, Any]:
    """Of all of them, with what `bench.reporting` reads."""
    measures = [Measure("psnr ours", ours.psnr, "dB", "higher")]
    for name, peer in peers.items():
        measures.append(Measure(f"psnr {name}", peer.psnr, "dB"))
        measures += [ratio(f"{name} {setting}", rounds) for setting, rounds in peer.rounds.items()]
        for steps in sorted(by_steps(peer.all_outcomes["ours"])):
            if ratios := peer.latency_ratios(steps):
                measures.append(Measure.median(f"latency ratio {name} mixed {steps} steps", ratios, better="higher"))
    return {
        "ours": ours.figures,
        "peers": {name: peer.figures for name, peer in peers.items()},
        **told(measures, [*_ratio_plots(peers), *_latency_plots(peers)]),
    }


def ratio(name: str, rounds: Rounds) -> Measure:
    """Of time, theirs over ours."""
    return Measure.median(f"ratio {name}", rounds.ratios, better="higher")


def _ratio_plots(peers: Mapping[str, Compared]) -> list[Plot]:
    found = []
    for setting in SETTINGS:
        series = {
            name: [(float(number), value) for number, value in enumerate(peer.rounds[setting].ratios, start=1)]
            for name, peer in peers.items()
            if setting in peer.rounds
        }
        if series:
            found.append(Plot(f"Time over ours, {MEANINGS[setting]}", "curve", "round", "times as long", series))
    return found


def _latency_plots(peers: Mapping[str, Compared]) -> list[Plot]:
    return [
        Plot(
            f"Mixed load: ours and {name}",
            "curve",
            "latency (s)",
            "share of requests answered",
            {who: _cumulative([outcome.seconds for outcome in them]) for who, them in peer.all_outcomes.items()},
        )
        for name, peer in peers.items()
        if peer.loads
    ]


def _cumulative(seconds: Sequence[float]) -> list[tuple[float, float]]:
    return [(value, (rank + 1) / len(seconds)) for rank, value in enumerate(sorted(seconds))]
