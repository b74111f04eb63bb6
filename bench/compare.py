"""What changed from one result to another beyond noise: each figure's ratio B over A, its interval, and a verdict.

Where both have enough repetitions (four, for 95 % confidence), a figure differs if the rank test of Mann and Whitney
and a bootstrap of its median (or mean) both say so. Otherwise it differs if its ranges do not meet, or where no spread
is known, if it is off by more than --tolerance, or --threshold if that is less. The range of a load's figure is an
interval from that load's own requests (see bench/traffic/intervals.py): what differs from run to run it cannot know.
Each verdict stands by itself: of many figures that did not change, a few will look as if.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.reporting.comparing import Change, Judging, compared, differences, percent, regressions
from bench.reporting.reading import read
from bench.reporting.words import ABSENT, interval, number

COLUMNS = ("figure", "unit", "A", "B", "B / A", "interval", "by", "verdict")
TOLERANCE = 0.1
# What matters most comes first.
ORDER = ("worse", "better", "changed", "other unit", "only in A", "only in B", "same")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A.json", type=Path, help="the result to compare with")
    parser.add_argument("b", metavar="B.json", type=Path, help="the result that is judged")
    parser.add_argument(
        "--threshold", type=part, metavar="5%",
        help="exit code 1 if a figure is worse beyond noise, and by more than this, or is missing in B",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=part, metavar="10%",
        help="by how much figures without a known spread, or of too few repetitions, may differ (default: 10%%, or "
        "--threshold if that is less)",
    )  # fmt: skip
    parser.add_argument("--confidence", type=part, default=0.95, metavar="95%", help="of one verdict (default: 95%%)")


def part(text: str) -> float:
    """`5%` or `0.05`.

    Raises:
        argparse.ArgumentTypeError: it is no part of 1.
    """
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no part: write such as 5% or 0.05")
    return value


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure's change, and what else differs; `failures` only with a threshold.

    Raises:
        ServerError: a file that is no result.
    """
    a, b = read(options.a), read(options.b)
    judging = Judging(options.confidence, tolerance_of(options))
    changes = compared(a.measures, b.measures, judging)
    changes.sort(key=lambda change: ORDER.index(change.verdict))
    warnings = differences(a, b)
    for sentence in warnings:
        print(f"warning: {sentence}")
    print("\n".join(table(changes)))
    return {
        "a": str(options.a),
        "b": str(options.b),
        "verdicts": dict(Counter(change.verdict for change in changes)),
        "warnings": warnings,
        "changes": [asdict(change) for change in changes],
        "failures": [] if options.threshold is None else regressions(changes, options.threshold),
        "settings": {"threshold": options.threshold, "tolerance": judging.tolerance, "confidence": judging.confidence},
    }


def tolerance_of(options: argparse.Namespace) -> float:
    """What is said; else the usual one, but not more than the threshold, so that nothing gets worse by more unseen."""
    if options.tolerance is not None:
        said: float = options.tolerance
        return said
    return TOLERANCE if options.threshold is None else min(TOLERANCE, options.threshold)


def table(changes: Sequence[Change]) -> list[str]:
    """Lines of equally wide columns."""
    rows = [COLUMNS, *(_cells(change) for change in changes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(change: Change) -> tuple[str, ...]:
    values = [ABSENT if value is None else number(value) for value in (change.a, change.b)]
    ratio = ABSENT if change.ratio is None else f"{change.ratio:.3f}"
    known = change.low is not None and change.high is not None
    between = interval(change.low or 0.0, change.high or 0.0) if known else change.basis
    sign = ("+" if (change.by or 0.0) > 0 else "-") if change.a else ""
    by = f"{sign}{percent(change)}" if change.by else ""
    return change.name, change.unit, *values, ratio, between, by, change.verdict
