"""An export's plans: each built once for what goes into it, by one process at a time, whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from engines.build_reports import Bar
from engines.compilers import Compiled, TensorRT, Work, open_compiler
from engines.component import Component, PipelineSpec, Precision, file_sha256
from engines.errors import ArtefactError, BuildError, MemoryShortage
from engines.manifest import FOLDER, Capability, Manifest, Options, Recipe
from engines.peak_memory import peak_bytes, reset_peak
from engines.plan_files import alone, check_room, prune, standing, write
from engines.precision import plan_for
from engines.profiles import (
    TOKENS,
    Rows,
    Tokens,
    component_profile,
    default_rows,
    depends_on_resolution,
    latent_sides,
)

logger = logging.getLogger(__name__)

# The rows of one guided image; a plan with fewer is of little use.
FEWEST_ROWS = 2


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built.

    Attributes:
        compiler: one of `engines.manifest.COMPILERS`, or `auto`.
        components: their names; none means all.
        resolutions: (height, width) in pixels; none means those of the export.
        rows: by component; others take `default_rows`.
        capabilities: compute capabilities that plans are for; none means the GPU at hand, or TensorRT-RTX's portable
            ones.
        timing_cache: file of tactics' times that builds read and add to.
    """

    compiler: str = "auto"
    components: tuple[str, ...] = ()
    resolutions: tuple[tuple[int, int], ...] = ()
    rows: Mapping[str, Rows] = field(default_factory=dict)
    tokens: Tokens = TOKENS
    capabilities: tuple[Capability, ...] = ()
    options: Options = field(default_factory=Options)
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """A plan that is there now; `hit` when it was there before."""

    plan: Path
    manifest: Manifest
    hit: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One plan to build.

    Attributes:
        precision: that most of the component computes in.
        latent: (height, width); tokens: of the prompt.
    """

    recipe: Recipe
    component: Component
    precision: Precision
    latent: tuple[int, int]
    rows: Rows
    tokens: Tokens


def build(folder: Path, order: Order) -> list[Built]:
    """Build what is missing of an order; nothing is built before all of it is known to make sense.

    Afterwards the plans that were made from an earlier export are removed.

    Args:
        folder: of an export.

    Raises:
        ArtefactError: the export is missing or damaged.
        BuildError: something cannot be built as asked.
        OSError: the plans cannot be written.
    """
    spec = PipelineSpec.read(folder)
    compiler = open_compiler(order.compiler)
    compiler.check(order.capabilities, order.options, order.timing_cache)
    built = [build_plan(folder, task, compiler, order.timing_cache) for task in tasks(spec, order, compiler)]
    for plan in prune(folder, spec):
        logger.info("%s is removed: it was made from an earlier export", plan.name)
    return built


def tasks(spec: PipelineSpec, order: Order, compiler: TensorRT) -> list[Task]:
    """The plans of an order: one per component and resolution, one where the resolution makes no difference.

    Raises:
        ArtefactError: a component was not exported.
        BuildError: a resolution is impossible, or not one of the export's; a component is in int8.
    """
    resolutions = list(dict.fromkeys(order.resolutions or spec.resolutions))
    latents = {resolution: latent_sides(resolution, spec.downscale) for resolution in resolutions}
    if missing := [f"{height}x{width}" for height, width in resolutions if (height, width) not in spec.resolutions]:
        there = ", ".join(f"{height}x{width}" for height, width in spec.resolutions)
        raise BuildError(f"the export is for {there}, not for {', '.join(missing)}; export with --resolution again")
    if strangers := set(order.rows) - set(spec.components):
        raise BuildError(f"--rows names {sorted(strangers)}; the export has {', '.join(spec.components)}")
    found = []
    for name in dict.fromkeys(order.components or spec.components):
        component = spec.component(name)
        if component.precision == "int8":
            raise BuildError(f"the {name} is in int8, which is made for CPUs; build from an export in fp16 instead")
        for resolution in resolutions if depends_on_resolution(component) else resolutions[:1]:
            found.append(_task(spec, order, compiler, component, resolution, latents[resolution]))
    return found


def _task(
    spec: PipelineSpec,
    order: Order,
    compiler: TensorRT,
    component: Component,
    resolution: tuple[int, int],
    latent: tuple[int, int],
) -> Task:
    rows = order.rows.get(component.name, default_rows(component.name))
    recipe = Recipe(
        component=component.name,
        onnx_sha256=component.sha256,
        fingerprint=spec.fingerprint,
        export_key=spec.key,
        precision=component.precision,
        resolution=resolution if depends_on_resolution(component) else None,
        profile=component_profile(component, latent, rows, order.tokens),
        compiler=compiler.name,
        version=compiler.version,
        capabilities=compiler.targets(order.capabilities),
        options=order.options,
    )
    precision = plan_for(spec.family, component.name, component.precision).dtype
    return Task(recipe, component, precision, latent, rows, order.tokens)


def build_plan(folder: Path, task: Task, compiler: TensorRT, timing_cache: Path | None = None) -> Built:
    """One plan, built unless it is there; whoever comes while another process builds it waits and finds it there.

    Raises:
        ArtefactError, BuildError, OSError: as `build`.
    """
    plan = folder / FOLDER / f"{task.recipe.stem}.plan"
    if found := standing(plan, task.recipe):
        return Built(plan, found, hit=True)
    with alone(plan):
        if found := standing(plan, task.recipe):
            return Built(plan, found, hit=True)
        if plan.exists():
            logger.info("%s is not what was built; building it again", plan.name)
        return Built(plan, _build_alone(folder, plan, task, compiler, timing_cache), hit=False)


def _build_alone(folder: Path, plan: Path, task: Task, compiler: TensorRT, timing_cache: Path | None) -> Manifest:
    onnx = folder / task.component.file
    if not onnx.is_file():
        raise ArtefactError(f"{onnx} does not exist; run `python -m export` again")
    if file_sha256(onnx) != task.recipe.onnx_sha256:
        raise ArtefactError(f"{onnx} is damaged, its SHA-256 has changed; run `python -m export` again")
    if not task.recipe.options.stripped:
        check_room(plan, sum(part.stat().st_size for part in folder.glob(f"{task.component.file}*")))
    reset_peak()
    started = time.monotonic()
    compiled, rows, level, concessions = _with_less(onnx, task, compiler, timing_cache)
    made = Manifest(
        recipe=task.recipe,
        key=task.recipe.key,
        sha256=hashlib.sha256(compiled.plan).hexdigest(),
        size=memoryview(compiled.plan).nbytes,
        modified_ns=0,
        profile=component_profile(task.component, task.latent, rows, task.tokens),
        level=level,
        concessions=concessions,
        layers=compiled.layers,
        seconds=round(time.monotonic() - started, 2),
        peak_bytes=peak_bytes(),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    logger.info("%s: built in %.1f s", plan.name, made.seconds)
    return write(plan, compiled.plan, made)


def _with_less(
    onnx: Path, task: Task, compiler: TensorRT, timing_cache: Path | None
) -> tuple[Compiled, Rows, int, tuple[str, ...]]:
    """Compile, with less and less where memory is short. Returns also rows and level, and what was given up."""
    refused: list[str] = []
    shortage: MemoryShortage | None = None
    for rows, level, what in attempts(task.rows, task.recipe.options.level):
        if shortage is not None:
            logger.warning("%s; trying %s", shortage, what)
            refused.append(what)
        with Bar(task.recipe.title) as bar:
            work = Work(
                onnx=onnx,
                component=task.component,
                precision=task.precision,
                profile=component_profile(task.component, task.latent, rows, task.tokens),
                capabilities=task.recipe.capabilities,
                options=replace(task.recipe.options, level=level),
                timing_cache=timing_cache,
                watcher=bar,
            )
            try:
                return compiler.compile(work), rows, level, tuple(refused)
            except MemoryShortage as error:
                shortage = error
    raise MemoryShortage(
        f"{shortage}, even with {'; '.join(refused) or 'the fewest rows and level 0'}; free memory or set --memory-gb"
    ) from shortage


def attempts(rows: Rows, level: int) -> Iterator[tuple[Rows, int, str]]:
    """What to try in turn, and what is new about it: as asked, half the rows again and again, lower levels."""
    yield rows, level, ""
    while rows.maximum > max(rows.minimum, FEWEST_ROWS):
        rows = rows.at_most(max(rows.maximum // 2, rows.minimum, FEWEST_ROWS))
        yield rows, level, f"at most {rows.maximum} rows"
    for lower in range(level - 1, -1, -1):
        yield rows, lower, f"level {lower}"
