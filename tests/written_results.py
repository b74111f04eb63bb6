"""Results of `python -m bench` in files, as if measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.reporting.measures import Measure, Plot, told
from bench.reporting.results import described


def written(
    file: Path, measures: Sequence[Measure] = (), plots: Sequence[Plot] = (), program: str = "online", **more: Any
) -> Path:
    """The file, which now holds a result with these figures."""
    result = described(program, ["--json", str(file)], told(measures, plots))
    file.write_text(json.dumps({**result, **more}), encoding="utf-8")
    return file
