"""`python -m engines verify` on runners that compute something cheap, and on ones that are wrong in some way."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import runner, verify
from engines.component import Component, PipelineSpec
from engines.errors import ArtefactError, EngineError
from engines.manifest import Machine
from engines.providers import Settings
from engines.runner import FakeRunner
from engines.verify import SAME_PIXELS_PSNR, TOLERANCES, add_arguments, arithmetic, difference, main_verify, psnr

Change = Callable[[str, Any], Any]


class Wrong(FakeRunner):
    """What the fake computes, changed."""

    def __init__(self, component: Component, change: Change) -> None:
        super().__init__(component)
        self._change = change

    def infer(self, feeds: Any) -> dict[str, Any]:
        return {name: self._change(self.component.name, array) for name, array in super().infer(feeds).items()}


@pytest.fixture
def verified(fake_export: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command on a candidate that is changed in some way; the reference is the fake."""

    def run(change: Change = lambda name, array: array, *arguments: str) -> int:
        def opened(component: Component, folder: Path, provider: str, settings: Settings) -> FakeRunner:
            return FakeRunner(component) if provider == "cpu" else Wrong(component, change)

        monkeypatch.setattr(verify, "open_runner", opened)
        monkeypatch.setattr(runner, "available", lambda: ("cuda", "cpu"))
        monkeypatch.setattr(runner, "device_capability", lambda: (8, 9))
        monkeypatch.setattr(PipelineSpec, "verify", lambda spec, folder: None)
        return main_verify(options(fake_export, *arguments))

    return run


def options(folder: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(folder), *arguments])


def test_the_same_values_are_good_and_tell_a_line_for_the_table(
    verified: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert verified(lambda name, array: array, "--row", str(tmp_path / "rows.md")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:-2]] == ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
    assert "100.0 dB" in printed[-2]
    assert (tmp_path / "rows.md").read_text() == printed[-1] + "\n"
    what, where, state = printed[-1].strip("| ").split(" | ")
    assert what == "tests/fake, 4 components, provider cuda (fp32)"
    assert "onnxruntime" in where
    assert state.startswith("good: largest difference 0.0e+00 (")
    assert "a picture of 20 steps at 64x64: 100 dB; 20" in state


@pytest.mark.parametrize("factor", [0.5, 20.0])
def test_a_difference_beyond_the_tolerance_is_refused(
    verified: Callable[..., int], capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    def shift(name: str, array: Any) -> Any:
        return array + np.float32(factor * TOLERANCES["fp32"].mean * array.std()) if name == "unet" else array

    assert verified(shift, "--steps", "0") == (factor > 1)
    printed = capsys.readouterr()
    assert ("refused: unet differs by" in printed.err) is (factor > 1)
    assert "picture" not in printed.out


def test_a_value_that_is_no_number_is_refused(verified: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(name: str, array: Any) -> Any:
        if name == "vae_decoder":
            array[0, 0, 0, 0] = np.nan
        return array

    assert verified(spoil) == 1
    assert "refused: vae_decoder gives values that are no numbers" in capsys.readouterr().err


def test_a_picture_that_drifts_is_refused(
    verified: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every call is within its tolerance."""
    strict = {"fp32": replace(TOLERANCES["fp32"], psnr=99.0)}
    monkeypatch.setattr(verify, "TOLERANCES", strict)
    assert verified(lambda name, array: array + np.float32(2e-5) * (name == "unet")) == 1
    refused = capsys.readouterr().err.splitlines()
    assert len(refused) == 1
    assert refused[0].startswith("refused: the picture is ")


def test_a_reference_that_overflows_is_no_reference() -> None:
    bad = {"y": np.array([1, np.inf], np.float32)}
    with pytest.raises(ArtefactError, match=r"the reference itself overflows in unet; .* --precision fp32"):
        difference("unet", "fp16", {"y": np.zeros(2, np.float32)}, bad)


def test_differences_are_in_units_of_the_references_deviation() -> None:
    reference = {"y": np.array([-10, 10], np.float32)}
    found = difference("unet", "fp16", {"y": np.array([-10, 11], np.float32)}, reference)
    assert (found.largest, found.mean) == pytest.approx((0.1, 0.05))


def test_components_and_sizes_may_be_chosen(verified: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(lambda name, array: array, "--component", "unet", "--size", "128x128") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["unet", "|"]


def test_a_size_that_was_not_exported_is_refused(verified: Callable[..., int]) -> None:
    with pytest.raises(
        EngineError, match="--size 99x99 is none of the export's; choose one of 64x64, 128x128, 64, 128"
    ):
        verified(lambda name, array: array, "--size", "99x99")


def test_a_reference_must_be_of_the_same_checkpoint(
    fake_export: Path, verified: Callable[..., int], tmp_path: Path
) -> None:
    replace(PipelineSpec.read(fake_export), fingerprint="f" * 64).write(tmp_path)
    with pytest.raises(EngineError, match="of another checkpoint than"):
        verified(lambda name, array: array, "--reference", str(tmp_path))


@pytest.mark.parametrize(
    ("provider", "settings", "precision"),
    [
        ("cpu", Settings(), "fp32"),
        ("openvino", Settings(precision="bf16"), "bf16"),
        ("openvino_ep", Settings(precision="f32"), "fp32"),
        ("cuda", Settings(), "fp16"),
    ],
)
def test_a_tolerance_is_that_of_what_a_provider_computes_in(
    fake_export: Path, provider: str, settings: Settings, precision: str
) -> None:
    component = replace(PipelineSpec.read(fake_export).component("unet"), precision="fp16")
    assert arithmetic(provider, component, settings) == precision


def test_psnr() -> None:
    zeros = np.zeros((3, 4, 4), np.uint8)
    assert psnr(zeros, zeros) == SAME_PIXELS_PSNR
    assert psnr(zeros + np.uint8(255), zeros) == 0
    assert psnr(zeros + np.uint8(1), zeros) == pytest.approx(48.13, abs=0.01)


def test_a_damaged_export_is_refused_before_anything_runs(toy_export: Path) -> None:
    """Both sides would compute the same with it."""
    path = toy_export / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtefactError, match=r"unet\.onnx is damaged, its SHA-256 has changed"):
        main_verify(options(toy_export))


@pytest.mark.parametrize("wrong", [("--rows", "0"), ("--steps", "-1"), ("--steps", "1001")])
def test_numbers_that_make_no_sense_are_refused(verified: Callable[..., int], wrong: tuple[str, str]) -> None:
    with pytest.raises(EngineError, match="--rows must be at least 1, and --steps 0 to 1000"):
        verified(lambda name, array: array, *wrong)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--provider", "abacus"), "provider 'abacus' is not available here; choose auto or one of cuda, cpu"),
        (("--plans", "--provider", "cuda"), "cuda is not here, or runs no plans"),
        (("--component", "ears"), "has no component 'ears'"),
    ],
)
def test_what_cannot_run_is_told_before_the_reference_does(
    verified: Callable[..., int], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(verify, "run_components", lambda *given: pytest.fail("the reference has begun"))
    with pytest.raises(EngineError, match=told):
        verified(lambda name, array: array, *arguments)


def test_plans_are_told_with_the_compilers_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "this_machine", lambda name: Machine("tensorrt", f"11.4 of {name}", (8, 9)))
    assert verify.versions("tensorrt plans").endswith(", tensorrt 11.4 of tensorrt")


def test_int8_is_no_reference(fake_export: Path, verified: Callable[..., int], tmp_path: Path) -> None:
    spec = PipelineSpec.read(fake_export)
    unet = replace(spec.component("unet"), precision="int8")
    assert arithmetic("openvino", unet, Settings(precision="bf16")) == "int8"
    replace(spec, components={**spec.components, "unet": unet}).write(tmp_path)
    with pytest.raises(EngineError, match="is in int8, no reference; give the export it was made of"):
        verified(lambda name, array: array, "--reference", str(tmp_path))
