"""Keys cover what determines a plan, and plans that are not what they should be are refused with reason and remedy."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.build import Order, build
from engines.component import PipelineSpec
from engines.errors import ArtefactError, PlanError
from engines.manifest import Machine, Manifest, Options, Recipe, check, find_plan, plans
from engines.profiles import Rows, ShapeRange, Tokens
from tests.made_up_plans import VERSION, write_plan
from tests.toy_export import write_toy_export

RECIPE = Recipe(
    component="unet",
    onnx_sha256="1" * 64,
    fingerprint="2" * 64,
    export_key="3" * 64,
    precision="fp16",
    resolution=(64, 64),
    profile={"sample": ShapeRange((1, 4), (2, 4), (4, 4))},
    compiler="tensorrt_rtx",
    version="1.7.1",
    capabilities=((8, 9),),
    options=Options(),
)
OTHERS: dict[str, Any] = {
    "component": "vae_decoder",
    "onnx_sha256": "4" * 64,
    "fingerprint": "4" * 64,
    "export_key": "4" * 64,
    "precision": "fp32",
    "resolution": (64, 128),
    "profile": {"sample": ShapeRange((1, 4), (2, 4), (8, 4))},
    "compiler": "tensorrt",
    "version": "1.7.2",
    "capabilities": ((8, 9), (12, 0)),
}


@pytest.fixture
def plan(toy_export: Path) -> Path:
    """A plan of the toy UNet for compute capability 8.9."""
    order = Order(components=("unet",), resolutions=((64, 64),), capabilities=((8, 9),))
    return build(toy_export, order)[0].plan


@pytest.fixture
def manifest(plan: Path) -> Manifest:
    return Manifest.read(plan.with_suffix(".json"))


@pytest.fixture
def machine(manifest: Manifest) -> Machine:
    """One that the plan is for."""
    return Machine(manifest.recipe.compiler, manifest.recipe.version, (8, 9))


@pytest.mark.parametrize("field", OTHERS)
def test_another_ingredient_gives_another_key(field: str) -> None:
    assert replace(RECIPE, **{field: OTHERS[field]}).key != RECIPE.key


@pytest.mark.parametrize(
    "option", [{"refittable": True}, {"stripped": True}, {"level": 2}, {"memory_bytes": 1}, {"tf32": True}]
)
def test_another_option_gives_another_key(option: dict[str, Any]) -> None:
    assert replace(RECIPE, options=Options(**option)).key != RECIPE.key


def test_the_file_is_called_after_component_resolution_and_key() -> None:
    assert RECIPE.stem == f"unet-64x64-{RECIPE.key[:12]}"
    assert replace(RECIPE, resolution=None).stem.startswith("unet-")


def test_a_manifest_is_read_as_it_was_written(plan: Path, manifest: Manifest, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_text(manifest.to_json())
    assert Manifest.read(copy) == manifest
    assert manifest.recipe.key == manifest.key
    assert plan.stat().st_size == manifest.size
    assert manifest.profile["sample"] == ShapeRange((1, 4, 8, 8), (8, 4, 8, 8), (16, 4, 8, 8))


def test_a_plan_that_fits_is_accepted(plan: Path, manifest: Manifest, machine: Machine) -> None:
    check(manifest, plan, machine)
    check(manifest, plan)


def truncate(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])


def flip(plan: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(truncate, "bytes"), (flip, "tampered"), (Path.unlink, "does not exist")],
)
def test_a_plan_that_is_not_what_was_built_is_refused(
    plan: Path, manifest: Manifest, harm: Callable[[Path], None], reason: str
) -> None:
    harm(plan)
    with pytest.raises(PlanError, match=rf"{reason}.*build it with `python -m engines build`"):
        check(manifest, plan)


def test_a_plan_of_an_older_export_is_refused(plan: Path, manifest: Manifest, toy_export: Path) -> None:
    spec = PipelineSpec.read(toy_export)
    changed = {**spec.components, "unet": replace(spec.components["unet"], sha256="5" * 64)}
    replace(spec, components=changed).write(toy_export)
    with pytest.raises(PlanError, match=r"stale: unet was exported again since"):
        check(manifest, plan)


def test_a_plan_of_another_checkpoint_is_refused(plan: Path, manifest: Manifest, toy_export: Path) -> None:
    write_toy_export(toy_export, seed=7)
    with pytest.raises(PlanError, match="stale: it was made from another checkpoint"):
        check(manifest, plan)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"compiler": "tensorrt", "version": "11.4.0"}, r"for tensorrt_rtx, not tensorrt; .*--compiler tensorrt"),
        ({"version": "1.8.0"}, r"here is 1\.8\.0; .*or install tensorrt_rtx"),
        ({"capability": (12, 0)}, r"for compute capability 8\.9, this GPU has 12\.0; .*--compute-capability 12\.0"),
        ({"capability": None}, "needs an NVIDIA GPU"),
    ],
)
def test_a_plan_for_another_machine_is_refused(
    plan: Path, manifest: Manifest, machine: Machine, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        check(manifest, plan, replace(machine, **change))


def test_a_plan_without_its_weights_runs_nowhere(plan: Path, manifest: Manifest, machine: Machine) -> None:
    recipe = replace(manifest.recipe, options=Options(stripped=True))
    stripped = replace(manifest, recipe=recipe, key=recipe.key)
    check(stripped, plan)
    with pytest.raises(PlanError, match="was built with --strip"):
        check(stripped, plan, machine)


def test_a_portable_plan_is_for_8_0_and_later(toy_export: Path) -> None:
    [built] = build(toy_export, Order(components=("unet",), resolutions=((64, 64),)))
    recipe = built.manifest.recipe
    check(built.manifest, built.plan, Machine(recipe.compiler, recipe.version, (12, 0)))
    with pytest.raises(PlanError, match=r"8\.0 and later, this GPU has 7\.5"):
        check(built.manifest, built.plan, Machine(recipe.compiler, recipe.version, (7, 5)))


def altered(text: str, **changes: Any) -> str:
    content = json.loads(text)
    return json.dumps(content | changes)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text[:-20], "is damaged"),
        (lambda text: "[]", "is damaged"),
        (lambda text: altered(text, size=[1]) + "x", "is damaged"),
        (lambda text: altered(text, format=0), "another version"),
        (lambda text: altered(text, unknown=1), "is damaged"),
        (lambda text: altered(text, size="large"), "is damaged"),
        (lambda text: altered(text, seconds=[]), "is damaged"),
        (lambda text: altered(text, key="0" * 64), "was altered"),
        (lambda text: text.replace('"level": 3,', '"level": 5,'), "was altered"),
        (lambda text: text.replace('"precision": "fp16"', '"precision": "fp32"'), "was altered"),
    ],
)
def test_a_manifest_that_is_not_what_was_written_is_refused(
    plan: Path, spoil: Callable[[str], str], reason: str
) -> None:
    path = plan.with_suffix(".json")
    path.write_text(spoil(path.read_text()))
    with pytest.raises(PlanError, match=reason):
        Manifest.read(path)


def test_a_plan_without_a_manifest_is_refused(plan: Path) -> None:
    plan.with_suffix(".json").unlink()
    with pytest.raises(PlanError, match="nobody knows what its plan was made from"):
        Manifest.read(plan.with_suffix(".json"))


def test_the_plan_with_the_most_rows_is_found(toy_export: Path, plan: Path, machine: Machine) -> None:
    order = Order(components=("unet",), capabilities=((8, 9),), rows={"unet": Rows(1, 1, 32)})
    wide = build(toy_export, order)
    assert len(plans(toy_export)) == 3
    found, _ = find_plan(toy_export, "unet", (64, 64), machine)
    assert found == wide[0].plan != plan


def test_of_plans_with_as_many_rows_the_one_for_longer_prompts_is_found(tmp_path: Path, fake_export: Path) -> None:
    folder = shutil.copytree(fake_export, tmp_path / "export")
    (folder / "plans").mkdir()
    for tokens in (77, 616, 231):
        write_plan(folder, PipelineSpec.read(folder), "unet", (64, 64), (8, 9), tokens=Tokens(77, 77, tokens))
    machine = Machine("tensorrt", VERSION, (8, 9))
    plan, found = find_plan(folder, "unet", (64, 64), machine)
    assert found.profile["encoder_hidden_states"].maximum == (12, 616, 8)
    flip(plan)
    assert find_plan(folder, "unet", (64, 64), machine, to_run=False)[0] == plan
    _, second = find_plan(folder, "unet", (64, 64), machine)
    assert second.profile["encoder_hidden_states"].maximum == (12, 231, 8)


def test_a_plan_without_sides_is_found_for_every_resolution(toy_export: Path, machine: Machine) -> None:
    [built] = build(toy_export, Order(components=("text_encoder",), capabilities=((8, 9),)))
    for resolution in [(64, 64), (128, 128)]:
        assert find_plan(toy_export, "text_encoder", resolution, machine)[0] == built.plan


def test_no_plan_is_an_error_that_says_how_to_build_it(toy_export: Path, plan: Path, machine: Machine) -> None:
    with pytest.raises(PlanError, match="--resolution 128x128"):
        find_plan(toy_export, "unet", (128, 128), machine)


def test_where_plans_are_refused_the_error_says_why(toy_export: Path, plan: Path, machine: Machine) -> None:
    flip(plan)
    with pytest.raises(PlanError, match="tampered"):
        find_plan(toy_export, "unet", (64, 64), machine)


def test_a_check_needs_the_export(plan: Path, manifest: Manifest, toy_export: Path) -> None:
    (toy_export / "pipeline.json").unlink()
    with pytest.raises(ArtefactError, match="does not exist"):
        check(manifest, plan)
