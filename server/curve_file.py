"""Measured seconds of calls, read from the result of `python -m bench offline`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from engines.component import PipelineSpec
from server.errors import ServerError

# Of a component and a size such as "512x512", height first: milliseconds by rows.
Measured: TypeAlias = Mapping[tuple[str, str], Mapping[int, float]]
Points: TypeAlias = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class CurveFile:
    """How long the components of a checkpoint took.

    Attributes:
        path: of the file.
        fingerprint: of the checkpoint; empty in files that do not tell.
        checkpoint: its name, for people.
        provider: that computed; `plans`: whether it ran plans.
        measured: medians, in milliseconds.
    """

    path: Path
    fingerprint: str
    checkpoint: str
    provider: str
    plans: bool
    measured: Measured

    @classmethod
    def read(cls, path: Path) -> CurveFile:
        """Read a file.

        Raises:
            ServerError: there is none, or it is not what `bench offline` writes.
        """
        try:
            content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            measured: dict[tuple[str, str], dict[int, float]] = {}
            for timing in content["timings"]:
                rows, milliseconds = int(timing["rows"]), float(timing["median_ms"])
                if rows < 1 or not 0 < milliseconds < math.inf:
                    raise ValueError(f"{rows} rows in {milliseconds} ms")
                measured.setdefault((str(timing["component"]), str(timing["size"])), {})[rows] = milliseconds
            fingerprint, checkpoint = (str(content.get(name, "")) for name in ("fingerprint", "checkpoint"))
            plans = bool(content.get("plans", False))
            return cls(path, fingerprint, checkpoint, str(content["provider"]), plans, measured)
        except OSError as error:
            raise ServerError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from error
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"{path} is no result of `bench offline` ({error!r}); {_REMEDY}") from error

    def sizes(self, component: str) -> list[str]:
        """Those at which a component was measured."""
        return [size for name, size in self.measured if name == component]

    def points(self, component: str, size: str) -> Points:
        """(rows, seconds) of calls at a size such as "512x512", ascending.

        Raises:
            ServerError: that was not measured.
        """
        found = self.measured.get((component, size))
        if found is None:
            there = ", ".join(self.sizes(component)) or "no size"
            raise ServerError(f"{self.path} has the {component} at {there} and not at {size}; {_REMEDY}")
        return tuple(sorted((rows, milliseconds / 1e3) for rows, milliseconds in found.items()))


_REMEDY = "write one with `python -m bench offline --rows 1,2,4,8,16 --json FILE`"


def step_seconds(path: Path, spec: PipelineSpec, provider: str | None, plans: bool | None = None) -> Points:
    """(rows, seconds) of a checkpoint's UNet calls at its first resolution, as a server starts with.

    Args:
        provider: of the UNet; None takes what any other measured.
        plans: whether it runs a plan; None takes both.

    Raises:
        ServerError: the file is none, or was measured with another checkpoint, at other sizes, by another provider, or
            with plans where there are none, or the other way round.
    """
    file = CurveFile.read(path)
    if file.fingerprint != spec.fingerprint:
        whose = f"{file.checkpoint} ({file.fingerprint[:12]})" if file.fingerprint else "a checkpoint it does not name"
        raise ServerError(
            f"{path} was measured with {whose}, and this is {spec.checkpoint} ({spec.fingerprint[:12]}): "
            "measure this one with `python -m bench offline --model DIR --json FILE`"
        )
    if provider is not None and file.provider != provider:
        raise ServerError(
            f"{path} was measured by the provider {file.provider}, and the UNet runs by {provider}: "
            f"add --provider {file.provider}, or measure with `python -m bench offline --provider {provider}`"
        )
    if plans is not None and file.plans != plans:
        had, has = ("with plans", "without") if file.plans else ("without plans", "with plans")
        option = f"--provider {file.provider}{' --plans' if plans else ''}"
        raise ServerError(
            f"{path} was measured {had}, and the UNet runs {has}: {'leave out' if plans else 'add'} --plans, or "
            f"measure with `python -m bench offline {option}`"
        )
    return file.points("unet", "x".join(map(str, spec.resolutions[0])))
