"""Plans of toy networks by the real TensorRT-RTX: once, whole or not at all, with less where memory is short."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from engines import plan_files
from engines.build import Built, Order, attempts, build
from engines.compilers import Compiled, TensorRTRTX, Work
from engines.component import PipelineSpec, file_sha256
from engines.driver import device_capability
from engines.errors import ArtefactError, BuildError, MemoryShortage
from engines.manifest import Options, check_bytes
from engines.plan_files import alone
from engines.profiles import Rows, ShapeRange
from tests.toy_export import network

ROOT = Path(__file__).resolve().parents[2]
UNET = Order(components=("unet",), resolutions=((64, 64),), capabilities=((8, 9),))


def files(export: Path) -> set[str]:
    """What lies in the folder of plans but locks, which stay."""
    folder = export / "plans"
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"} if folder.exists() else set()


def pair(built: Built) -> set[str]:
    return {built.plan.name, built.plan.with_suffix(".json").name}


def with_component(export: Path, name: str, model: onnx.ModelProto) -> None:
    """Put another graph in place of a component's, as an export of it would."""
    spec = PipelineSpec.read(export)
    path = export / spec.components[name].file
    onnx.save_model(model, path)
    changed = replace(spec.components[name], sha256=file_sha256(path))
    replace(spec, components={**spec.components, name: changed}).write(export)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """What the compiler was given; it still compiles."""
    seen: list[Work] = []
    real = TensorRTRTX.compile

    def compile_(self: TensorRTRTX, work: Work) -> Compiled:
        seen.append(work)
        return real(self, work)

    monkeypatch.setattr(TensorRTRTX, "compile", compile_)
    return seen


def test_every_component_is_built_at_every_resolution_that_makes_a_difference(toy_export: Path) -> None:
    built = build(toy_export, Order(capabilities=((8, 9), (12, 0))))
    assert [(each.manifest.recipe.component, each.manifest.recipe.resolution) for each in built] == [
        ("text_encoder", None),
        ("unet", (64, 64)),
        ("unet", (128, 128)),
        ("vae_decoder", (64, 64)),
        ("vae_decoder", (128, 128)),
    ]
    assert files(toy_export) == set().union(*map(pair, built))
    for each in built:
        check_bytes(each.manifest, each.plan)
        assert each.manifest.recipe.capabilities == ((8, 9), (12, 0))
        assert each.manifest.layers == {"HALF": 1}
        assert (each.manifest.seconds > 0, each.manifest.peak_bytes > 1 << 20) == (True, True)


def test_networks_that_torch_exported_compile(tiny_export: Path, tmp_path: Path) -> None:
    export = Path(shutil.copytree(tiny_export, tmp_path / "export"))
    built = build(export, Order(resolutions=((64, 64),), capabilities=((8, 9),), options=Options(level=0)))
    assert [each.manifest.recipe.component for each in built] == ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
    assert {name for each in built for name in each.manifest.layers} == {"FLOAT"}


def test_a_second_build_is_a_hit_and_changes_nothing(toy_export: Path, compiled: list[Work]) -> None:
    [first] = build(toy_export, UNET)
    before = first.plan.stat().st_mtime_ns
    started = time.monotonic()
    [second] = build(toy_export, UNET)
    assert time.monotonic() - started < 1
    assert (first.hit, second.hit, len(compiled)) == (False, True, 1)
    assert second == replace(first, hit=True)
    assert second.plan.stat().st_mtime_ns == before


def test_a_copied_plan_is_a_hit_and_a_spoilt_one_is_built_again(toy_export: Path, compiled: list[Work]) -> None:
    [built] = build(toy_export, UNET)
    content = built.plan.read_bytes()
    built.plan.write_bytes(content)
    assert build(toy_export, UNET)[0].hit
    built.plan.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    [again] = build(toy_export, UNET)
    assert (again.hit, len(compiled)) == (False, 2)
    check_bytes(again.manifest, again.plan)


def test_a_plan_without_a_readable_manifest_is_built_again(toy_export: Path, compiled: list[Work]) -> None:
    [built] = build(toy_export, UNET)
    built.plan.with_suffix(".json").write_text("{")
    assert not build(toy_export, UNET)[0].hit
    assert len(compiled) == 2


def test_what_is_asked_for_twice_is_built_once(toy_export: Path) -> None:
    twice = Order(
        components=("unet", "unet"), resolutions=((64, 64), (64, 64)), capabilities=((12, 0), (8, 9), (12, 0))
    )
    [built] = build(toy_export, twice)
    [again] = build(toy_export, replace(UNET, capabilities=((8, 9), (12, 0))))
    assert (built.hit, again.hit, again.plan) == (False, True, built.plan)


def test_a_new_export_gets_plans_of_its_own_and_those_of_the_old_one_go(
    toy_export: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    [old] = build(toy_export, UNET)
    [other] = build(toy_export, replace(UNET, components=("text_encoder",)))
    with_component(toy_export, "unet", network("unet", seed=3))
    [new] = build(toy_export, UNET)
    assert (new.hit, new.plan == old.plan) == (False, False)
    assert files(toy_export) == pair(new) | pair(other)
    assert f"{old.plan.name} is removed: it was made from an earlier export" in caplog.text


def test_plans_for_others_and_what_nobody_understands_stay(toy_export: Path) -> None:
    [ours] = build(toy_export, UNET)
    [others] = build(toy_export, replace(UNET, capabilities=((12, 0),)))
    [fewer] = build(toy_export, replace(UNET, rows={"unet": Rows(1, 1, 1)}))
    fewer.plan.with_suffix(".json").write_text("{")
    build(toy_export, UNET)
    assert files(toy_export) == pair(ours) | pair(others) | pair(fewer)


def test_a_plan_of_an_earlier_export_that_is_being_built_stays(toy_export: Path) -> None:
    [old] = build(toy_export, UNET)
    with_component(toy_export, "unet", network("unet", seed=3))
    with alone(old.plan):
        build(toy_export, UNET)
    assert old.plan.exists()
    build(toy_export, UNET)
    assert not old.plan.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"resolutions": ((64, 100),)}, "64x100 does not fit: both sides must be multiples of 64 pixels"),
        ({"resolutions": ((64, 64), (192, 192))}, "the export is for 64x64, 128x128, not for 192x192"),
        ({"rows": {"refiner": Rows(1, 1, 1)}}, r"--rows names \['refiner'\]; the export has text_encoder, unet"),
        ({"capabilities": ((9, 0),)}, r"has no compute capability 9\.0; choose of 7\.5, 8\.0"),
        ({"timing_cache": Path("cache")}, "leave --timing-cache out"),
        ({"compiler": "tensorrt"}, "compiler 'tensorrt' is not installed with polygraphy, only tensorrt_rtx"),
        ({"capabilities": ((8, 9), (12, 0)), "options": Options(refittable=True)}, "one compute capability at a time"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is(
    toy_export: Path, compiled: list[Work], change: dict[str, object], reason: str
) -> None:
    with pytest.raises(BuildError, match=reason):
        build(toy_export, replace(UNET, **change))  # type: ignore[arg-type]
    assert (compiled, files(toy_export)) == ([], set())


def test_a_component_that_was_not_exported_is_refused(toy_export: Path) -> None:
    with pytest.raises(ArtefactError, match="no component 'controlnet', only"):
        build(toy_export, replace(UNET, components=("controlnet",)))


def test_a_damaged_or_missing_graph_is_refused(toy_export: Path, compiled: list[Work]) -> None:
    path = toy_export / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtefactError, match="SHA-256 has changed"):
        build(toy_export, UNET)
    path.unlink()
    with pytest.raises(ArtefactError, match="does not exist"):
        build(toy_export, UNET)
    assert (compiled, files(toy_export)) == ([], set())


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"pipeline\.json does not exist"):
        build(tmp_path, UNET)


def test_a_graph_in_fp32_that_should_be_in_fp16_is_refused(toy_export: Path) -> None:
    with_component(toy_export, "unet", network("unet", "fp32"))
    with pytest.raises(BuildError, match=r"should multiply in fp16, but its 1 multiplying layers are FLOAT"):
        build(toy_export, UNET)
    assert files(toy_export) == set()


def test_a_graph_with_other_types_at_its_edge_is_refused(toy_export: Path) -> None:
    model = network("unet")
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model.graph.node[-1].attribute[0].i = onnx.TensorProto.FLOAT16
    with_component(toy_export, "unet", model)
    with pytest.raises(BuildError, match=r"'out_sample': 'HALF'.*pipeline\.json says .*'out_sample': 'FLOAT'"):
        build(toy_export, UNET)


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Surprise"


def mixed_types(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].i = onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(unknown_operator, r"cannot read .*Surprise"), (mixed_types, r"cannot read .*Conv.*must be of same type")],
)
def test_what_the_compiler_does_not_understand_is_told_with_its_reason(
    toy_export: Path, spoil: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    model = network("unet")
    spoil(model)
    with_component(toy_export, "unet", model)
    with pytest.raises(BuildError, match=reason):
        build(toy_export, UNET)


@pytest.mark.skipif(device_capability() is not None, reason="there is a GPU")
@pytest.mark.parametrize("options", [Options(refittable=True), Options(stripped=True)])
def test_what_needs_a_driver_is_told_so(toy_export: Path, options: Options) -> None:
    with pytest.raises(BuildError, match=r"only where there is an NVIDIA driver; build unet there"):
        build(toy_export, replace(UNET, options=options))
    assert files(toy_export) == set()


def short_of_memory(monkeypatch: pytest.MonkeyPatch, rows: int, level: int) -> None:
    """Compile as if there were memory for that many rows at that level, and no more."""
    real = TensorRTRTX.compile

    def compile_(self: TensorRTRTX, work: Work) -> Compiled:
        if work.profile["sample"].maximum[0] > rows or work.options.level > level:
            raise MemoryShortage("out of memory on unet")
        return real(self, work)

    monkeypatch.setattr(TensorRTRTX, "compile", compile_)


def test_where_memory_is_short_fewer_rows_are_tried_and_told(
    toy_export: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short_of_memory(monkeypatch, rows=4, level=5)
    [built] = build(toy_export, UNET)
    assert built.manifest.concessions == ("at most 8 rows", "at most 4 rows")
    assert built.manifest.profile["sample"] == ShapeRange((1, 4, 8, 8), (4, 4, 8, 8), (4, 4, 8, 8))
    assert [record.getMessage() for record in caplog.records if "trying" in record.getMessage()] == [
        "out of memory on unet; trying at most 8 rows",
        "out of memory on unet; trying at most 4 rows",
    ]
    assert build(toy_export, UNET) == [replace(built, hit=True)]


def test_where_fewer_rows_do_not_help_lower_levels_are_tried(toy_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, rows=2, level=1)
    [built] = build(toy_export, UNET)
    assert built.manifest.concessions[-2:] == ("level 2", "level 1")
    assert (built.manifest.level, built.manifest.recipe.options.level) == (1, 3)


def test_where_nothing_helps_the_error_says_what_was_tried(toy_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, rows=0, level=5)
    with pytest.raises(MemoryShortage, match=r"even with at most 8 rows; .*level 0; free memory"):
        build(toy_export, UNET)
    assert files(toy_export) == set()


def test_attempts_keep_the_fewest_rows_that_were_asked_for() -> None:
    assert [rows for rows, _, _ in attempts(Rows(3, 8, 10), 0)] == [Rows(3, 8, 10), Rows(3, 5, 5), Rows(3, 3, 3)]
    assert [level for _, level, _ in attempts(Rows(1, 1, 1), 2)] == [2, 1, 0]


def test_a_full_disk_is_told_and_nothing_is_left(toy_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: object) -> None:
        path.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    [built] = build(toy_export, UNET)
    built.plan.write_bytes(b"spoilt")
    monkeypatch.setattr(plan_files, "_write_through", full)
    with pytest.raises(BuildError, match=r"cannot be written \(No space left on device\); free disk space"):
        build(toy_export, UNET)
    assert files(toy_export) == set()


def test_a_disk_too_small_is_told_before_the_build(
    toy_export: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[Work]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10))
    with pytest.raises(BuildError, match="0 MiB free"):
        build(toy_export, UNET)
    assert compiled == []


def test_a_folder_that_cannot_be_written_is_told(toy_export: Path) -> None:
    (toy_export / "plans").write_text("in the way")
    with pytest.raises(BuildError, match=r"cannot be written \(File exists\); .*permissions"):
        build(toy_export, UNET)


# A build that says when it compiles, and then takes a while.
SLOW = """
import sys, time
from pathlib import Path
from engines import build, compilers
compile_ = compilers.TensorRTRTX.compile
def slow(self, work):
    print("compiling", flush=True)
    time.sleep(float(sys.argv[2]))
    return compile_(self, work)
compilers.TensorRTRTX.compile = slow
order = build.Order(components=("unet",), resolutions=((64, 64),), capabilities=((8, 9),))
[built] = build.build(Path(sys.argv[1]), order)
print("hit" if built.hit else "built", built.plan.name, flush=True)
"""


@contextlib.contextmanager
def building(export: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SLOW, str(export), str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_who_comes_while_another_process_builds_waits_and_finds_the_plan(toy_export: Path) -> None:
    with building(toy_export, 1.5) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "compiling\n"
        with building(toy_export, 0) as second:
            outputs = [second.communicate(timeout=60)[0], first.communicate(timeout=60)[0]]
    assert [output.split()[0] for output in outputs] == ["hit", "built"]
    assert outputs[0].split()[1] == outputs[1].split()[1]


def test_a_killed_build_leaves_no_plan_and_bars_nobody(toy_export: Path) -> None:
    with building(toy_export, 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "compiling\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    assert files(toy_export) == set()
    [built] = build(toy_export, UNET)
    assert files(toy_export) == pair(built)


def test_what_a_process_left_that_was_killed_while_it_wrote_is_swept(toy_export: Path) -> None:
    [built] = build(toy_export, UNET)
    built.plan.unlink()
    built.plan.with_name(f".{built.plan.name}.partial").write_bytes(b"a part")
    assert not build(toy_export, UNET)[0].hit
    assert files(toy_export) == pair(built)
