"""What LoadGen's summary says, as figures and sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.loadgen.rules import Scenario
from server.errors import ServerError

SUMMARY, DETAIL = "mlperf_log_summary.txt", "mlperf_log_detail.txt"
LINE = re.compile(r"^(?P<name>[^:]+?)\s*:\s*(?P<value>\S.*?)\s*$")
PERCENTILE = re.compile(r"^(?P<share>[\d.]+) percentile latency \(ns\)$")
# Of a run of each scenario, what LoadGen calls its images a second.
RATES: Mapping[Scenario, str] = {
    "SingleStream": "QPS w/ loadgen overhead",
    "Offline": "Samples per second",
    "Server": "Completed samples per second",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """A performance run in LoadGen's judgement.

    Attributes:
        reasons: why it is not valid, and what LoadGen would have done about it.
        figures: by LoadGen's names.
    """

    valid: bool
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def samples_per_second(self, scenario: Scenario) -> float:
        return self.figures[RATES[scenario]]

    @property
    def percentiles(self) -> dict[str, float]:
        """Milliseconds by "p50", "p99" and so on."""
        found = {PERCENTILE.match(name): value for name, value in self.figures.items()}
        return {f"p{float(match['share']):g}": value / 1e6 for match, value in found.items() if match}


def read_summary(folder: Path) -> Summary:
    """The summary that LoadGen left in a folder.

    Raises:
        ServerError: there is none, or it is not of a performance run.
    """
    file = folder / SUMMARY
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if "Result is :" not in text:
        raise ServerError(f"{file} says nothing of a result; LoadGen's own words are in {folder / DETAIL}")
    return parsed(text)


def parsed(text: str) -> Summary:
    """The meaning of a summary's lines."""
    said, _, _ = text.partition("Test Parameters Used")
    pairs = [(match["name"].strip(), match["value"]) for line in said.splitlines() if (match := LINE.match(line))]
    unmet = [name for name, value in pairs if name.endswith("satisfied") and value.upper() != "YES"]
    valid = dict(pairs)["Result is"] == "VALID"
    reasons = [f"{name}: no" for name in unmet] + ([] if valid else _advice(said)) + _mistakes(text)
    return Summary(valid, tuple(reasons), {name: float(value) for name, value in pairs if _is_number(value)})


def _advice(text: str) -> list[str]:
    """Each of the points that LoadGen lists, on one line."""
    points: list[str] = []
    for line in text.splitlines():
        if line.startswith(" * "):
            points.append(line[3:].strip())
        elif points and line.startswith(" ") and ":" not in line:
            points[-1] += " " + line.strip()
    return points


def _mistakes(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if re.match(r"\d+ (ERROR|WARNING)S?\b", line.strip())]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
