"""Plans as people and scripts want to see them: what each was made from, and whether it is still good."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.errors import ArtefactError, EngineError
from engines.manifest import Machine, Manifest, check, dotted, plans

HEADER = ("plan", "rows", "type", "for", "options", "MiB", "seconds", "peak GiB", "state")


@dataclass(frozen=True, slots=True)
class Finding:
    """A plan with its manifest, if that can be read, and why it is refused, if it is."""

    plan: Path
    manifest: Manifest | None
    refusal: str

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        manifest = asdict(self.manifest) if self.manifest else None
        return {"plan": str(self.plan), "refusal": self.refusal or None, "manifest": manifest}


def findings(place: Path, machine: Machine | None = None) -> list[Finding]:
    """The plan at `place`, or all plans of the export folder that it is, each checked against its files.

    Args:
        machine: that the plans should also run on.

    Raises:
        ArtefactError: there is none.
    """
    found = [place] if place.suffix == ".plan" else plans(place)
    if not found:
        raise ArtefactError(f"{place} has no plans; make some with `python -m engines build {place}`")
    return [_finding(plan, machine) for plan in found]


def _finding(plan: Path, machine: Machine | None) -> Finding:
    manifest = None
    try:
        manifest = Manifest.read(plan.with_suffix(".json"))
        check(manifest, plan, machine)
    except EngineError as error:
        return Finding(plan, manifest, str(error))
    return Finding(plan, manifest, "")


def table(found: list[Finding]) -> str:
    """One line per plan, and below it the reasons for what was refused or given up."""
    lines = [HEADER, *(_cells(finding) for finding in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [finding.refusal for finding in found if finding.refusal]
    conceded = [(f.plan.name, f.manifest.concessions) for f in found if f.manifest and f.manifest.concessions]
    notes += [f"{name} was built with less than asked, since memory was short: {'; '.join(c)}" for name, c in conceded]
    return "\n".join([*text, *notes])


def _cells(finding: Finding) -> tuple[str, ...]:
    manifest = finding.manifest
    state = "refused" if finding.refusal else "good"
    if manifest is None:
        return (finding.plan.name, *[""] * (len(HEADER) - 2), state)
    recipe = manifest.recipe
    shapes = next(iter(manifest.profile.values()))
    capabilities = "+".join(map(dotted, recipe.capabilities)) or "portable"
    options = [name for name in ("refittable", "stripped", "tf32") if getattr(recipe.options, name)]
    return (
        finding.plan.name,
        ":".join(str(shape[0]) for shape in (shapes.minimum, shapes.optimum, shapes.maximum)),
        recipe.precision,
        f"{recipe.compiler} {recipe.version}, {capabilities}",
        ",".join([*options, f"level {manifest.level}"]),
        f"{manifest.size / 2**20:.1f}",
        f"{manifest.seconds:.1f}",
        f"{manifest.peak_bytes / 2**30:.1f}",
        state,
    )
