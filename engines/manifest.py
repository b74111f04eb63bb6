"""A plan's birth certificate: everything that went into it, the key over that, and whether the plan may be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from engines.component import PipelineSpec
from engines.errors import PlanError
from engines.profiles import Profile, ShapeRange, reach

CompilerName: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]
Capability: TypeAlias = tuple[int, int]

# The preferred first.
COMPILERS: tuple[CompilerName, ...] = ("tensorrt", "tensorrt_rtx")

FORMAT = 1
FOLDER = "plans"
KEY_LETTERS = 12
# What TensorRT-RTX promises of a plan for which no compute capability was named.
PORTABLE_FROM: Capability = (8, 0)
REBUILD = "build it with `python -m engines build`"


def dotted(capability: Capability) -> str:
    """A compute capability as NVIDIA writes it, such as 8.9."""
    return f"{capability[0]}.{capability[1]}"


@dataclass(frozen=True, slots=True)
class Options:
    """What the compiler is asked for besides shapes.

    Attributes:
        refittable: weights can be exchanged later.
        stripped: the plan leaves out the weights that can be exchanged; whoever loads it puts them in, which nothing
            here does.
        level: of builder optimisation, 0 (fastest build) to 5 (fastest plan).
        memory_bytes: of scratch memory at most; 0 leaves it to the compiler.
        tf32: fp32 products may round their factors to 10 bits, for speed.
    """

    refittable: bool = False
    stripped: bool = False
    level: int = 3
    memory_bytes: int = 0
    tf32: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a plan; equal recipes have equal keys.

    Attributes:
        onnx_sha256: of the graph and its weights.
        fingerprint: of the checkpoint; `export_key`: of its export.
        resolution: (height, width) in pixels, none where the shapes are the same for all.
        version: of the compiler.
        capabilities: compute capabilities that the plan is for; none means TensorRT-RTX's portable ones.
    """

    component: str
    onnx_sha256: str
    fingerprint: str
    export_key: str
    precision: str
    resolution: tuple[int, int] | None
    profile: Profile
    compiler: CompilerName
    version: str
    capabilities: tuple[Capability, ...]
    options: Options

    @property
    def key(self) -> str:
        """SHA-256 over all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def title(self) -> str:
        """Component and resolution, such as `unet-512x512`."""
        return f"{self.component}-{self.resolution[0]}x{self.resolution[1]}" if self.resolution else self.component

    @property
    def stem(self) -> str:
        """The plan's file name without its ending."""
        return f"{self.title}-{self.key[:KEY_LETTERS]}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a plan was made from, and what came out.

    Attributes:
        recipe: as it was asked for.
        key: of the recipe.
        sha256: of the plan's bytes; `size`, `modified_ns`: of its file when it was written.
        profile, level: as they were built, with less than asked where memory was short.
        concessions: what was given up for that, in words.
        layers: multiplying layers (matrix products, convolutions) by the compiler's name of their type.
        seconds: of the build; `peak_bytes`: the process's largest resident memory meanwhile.
        made: when, in UTC.
    """

    recipe: Recipe
    key: str
    sha256: str
    size: int
    modified_ns: int
    profile: Profile
    level: int
    concessions: tuple[str, ...]
    layers: Mapping[str, int]
    seconds: float
    peak_bytes: int
    made: str

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest's file.

        Raises:
            PlanError: it is missing, damaged, of another version, or altered.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise PlanError(f"{path} was written by another version; {REBUILD}")
            content["recipe"] = _recipe(content["recipe"])
            content["profile"] = _profile(content["profile"])
            content["concessions"] = tuple(content["concessions"])
            content |= {name: int(content[name]) for name in ("size", "modified_ns", "level", "peak_bytes")}
            content["seconds"] = float(content["seconds"])
            found = cls(**content)
        except (FileNotFoundError, NotADirectoryError):
            raise PlanError(f"{path} does not exist, so nobody knows what its plan was made from; {REBUILD}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{path} is damaged ({error}); {REBUILD}") from error
        if found.key != found.recipe.key:
            raise PlanError(f"{path} was altered: its key is not that of what it lists; {REBUILD}")
        return found


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a plan would run: the compiler's library, its version, and the GPU's compute capability, if any."""

    compiler: CompilerName
    version: str
    capability: Capability | None


def check(manifest: Manifest, plan: Path, machine: Machine | None = None) -> None:
    """Refuse a plan that is tampered with, stale, or foreign to a machine.

    Args:
        plan: lies in the folder `plans` of the export that it was made from.
        machine: none checks the files only.

    Raises:
        PlanError: and why, and what to do.
        ArtefactError: the export is missing or damaged.
    """
    check_bytes(manifest, plan)
    check_source(manifest.recipe, plan)
    if machine is not None:
        check_machine(manifest.recipe, plan, machine)


def check_bytes(manifest: Manifest, plan: Path) -> None:
    """Raises PlanError where the plan's bytes are not those that were built."""
    if not plan.is_file():
        raise PlanError(f"{plan} does not exist; {REBUILD}")
    size = plan.stat().st_size
    if size != manifest.size:
        raise PlanError(f"{plan} is damaged: it has {size} bytes, {manifest.size} were built; {REBUILD}")
    with plan.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != manifest.sha256:
            raise PlanError(f"{plan} is damaged or was tampered with: its SHA-256 has changed; {REBUILD}")


def check_source(recipe: Recipe, plan: Path) -> None:
    """Raises PlanError where the export beside the plan is no longer the one that it was made from."""
    spec = PipelineSpec.read(plan.parent.parent)
    if spec.fingerprint != recipe.fingerprint:
        raise PlanError(f"{plan} is stale: it was made from another checkpoint; {REBUILD}")
    if spec.component(recipe.component).sha256 != recipe.onnx_sha256:
        raise PlanError(f"{plan} is stale: {recipe.component} was exported again since; {REBUILD}")


def is_stale(recipe: Recipe, spec: PipelineSpec) -> bool:
    """Whether an export is no longer the one that a plan was made from."""
    component = spec.components.get(recipe.component)
    return component is None or (spec.fingerprint, component.sha256) != (recipe.fingerprint, recipe.onnx_sha256)


def check_weights(recipe: Recipe, plan: Path) -> None:
    """Raises PlanError where the plan lacks its weights."""
    if recipe.options.stripped:
        raise PlanError(
            f"{plan} was built with --strip, and neither Triton nor ONNX Runtime puts its weights in here; {REBUILD} "
            f"without --strip"
        )


def check_machine(recipe: Recipe, plan: Path, machine: Machine) -> None:
    """Raises PlanError where the plan lacks its weights, or was made for another library, version or GPU."""
    check_weights(recipe, plan)
    if recipe.compiler != machine.compiler:
        raise PlanError(
            f"{plan} is for {recipe.compiler}, not {machine.compiler}; {REBUILD} --compiler {machine.compiler}"
        )
    if recipe.version != machine.version:
        raise PlanError(
            f"{plan} was built by {recipe.compiler} {recipe.version}, here is {machine.version}; "
            f"{REBUILD}, or install {recipe.compiler} {recipe.version}"
        )
    if machine.capability is None:
        raise PlanError(f"{plan} needs an NVIDIA GPU and its driver, and none is here; run it where there is one")
    here = dotted(machine.capability)
    if not recipe.capabilities and machine.capability < PORTABLE_FROM:
        raise PlanError(f"{plan} is for compute capability 8.0 and later, this GPU has {here}; {REBUILD} "
                        f"--compute-capability {here}")  # fmt: skip
    if recipe.capabilities and machine.capability not in recipe.capabilities:
        made_for = " and ".join(map(dotted, recipe.capabilities))
        raise PlanError(
            f"{plan} is for compute capability {made_for}, this GPU has {here}; {REBUILD} --compute-capability {here}"
        )


def plans(folder: Path) -> list[Path]:
    """The plans of an export folder, by name; the manifest of each lies beside it with the ending `.json`."""
    return sorted((folder / FOLDER).glob("*.plan"))


def find_plan(
    folder: Path, component: str, resolution: tuple[int, int], machine: Machine, *, to_run: bool = True
) -> tuple[Path, Manifest]:
    """The plan of a component that may be used on a machine, the one with the most rows if there are several.

    Args:
        resolution: (height, width) in pixels; a plan of a component that is the same for all serves any.
        to_run: whether its bytes are checked, which takes as long as reading them.

    Raises:
        PlanError: there is none; where all were refused, why the last was.
        ArtefactError: the export is missing or damaged.
    """
    refusal = PlanError(
        f"{folder} has no plan of {component} at {resolution[0]}x{resolution[1]}; {REBUILD} {folder} "
        f"--resolution {resolution[0]}x{resolution[1]}"
    )
    fitting: list[tuple[Path, Manifest]] = []
    for plan in plans(folder):
        if not plan.name.startswith(f"{component}-"):
            continue
        try:
            manifest = Manifest.read(plan.with_suffix(".json"))
            if manifest.recipe.component == component and manifest.recipe.resolution in (None, resolution):
                if to_run:
                    check_bytes(manifest, plan)
                check_source(manifest.recipe, plan)
                check_machine(manifest.recipe, plan, machine)
                fitting.append((plan, manifest))
        except PlanError as error:
            refusal = error
    if not fitting:
        raise refusal
    return max(fitting, key=lambda found: reach(found[1].profile))


def _recipe(content: dict[str, Any]) -> Recipe:
    content["profile"] = _profile(content["profile"])
    content["capabilities"] = tuple((int(major), int(minor)) for major, minor in content["capabilities"])
    content["options"] = Options(**content["options"])
    if content["resolution"] is not None:
        height, width = content["resolution"]
        content["resolution"] = (int(height), int(width))
    return Recipe(**content)


def _profile(content: dict[str, dict[str, list[int]]]) -> dict[str, ShapeRange]:
    return {name: ShapeRange(**{end: tuple(shape) for end, shape in ends.items()}) for name, ends in content.items()}
