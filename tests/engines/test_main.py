"""`python -m engines`: its options, its exit codes, one sentence per error."""

import json
from pathlib import Path

import pytest

from engines import build
from engines.__main__ import main, order, parser
from engines.driver import device_capability
from engines.manifest import Options
from engines.profiles import Rows, Tokens


def test_options_become_an_order(toy_export: Path) -> None:
    line = (
        "--compiler tensorrt_rtx --resolution 64 --resolution 128x64 --component unet --component vae_decoder "
        "--rows 1:2:4 --rows unet=2 --tokens 77:154:231 --compute-capability 8.9 --compute-capability 12.0 "
        "--refittable --strip --level 5 --memory-gb 1.5 --tf32 --timing-cache times"
    )
    assert order(parser().parse_args(["build", str(toy_export), *line.split()])) == build.Order(
        compiler="tensorrt_rtx",
        components=("unet", "vae_decoder"),
        resolutions=((64, 64), (128, 64)),
        rows={"text_encoder": Rows(1, 2, 4), "unet": Rows(2, 2, 2), "vae_decoder": Rows(1, 2, 4)},
        tokens=Tokens(77, 154, 231),
        capabilities=((8, 9), (12, 0)),
        options=Options(refittable=True, stripped=True, level=5, memory_bytes=3 << 29, tf32=True),
        timing_cache=Path("times"),
    )


def test_without_options_everything_is_built(toy_export: Path) -> None:
    assert order(parser().parse_args(["build", str(toy_export)])) == build.Order()


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--resolution", "wide", "write 512, or 768x512"),
        ("--rows", "1:2", "write minimum:optimum:maximum"),
        ("--rows", "4:2:8", "write minimum:optimum:maximum"),
        ("--tokens", "many", "write minimum:optimum:maximum"),
        ("--compute-capability", "89", "write major and minor, such as 8.9"),
        ("--level", "6", "choose 0 (fastest build) to 5"),
        ("--level", "", "choose 0 (fastest build) to 5"),
        ("--memory-gb", "0", "write gigabytes"),
        ("--memory-gb", "nan", "write gigabytes"),
    ],
)
def test_an_option_that_makes_no_sense_is_told(
    option: str, value: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["build", "folder", option, value])
    assert stop.value.code == 2
    assert remedy in capsys.readouterr().err


def test_build_then_inspect(toy_export: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["build", str(toy_export), "--component", "text_encoder", "--json", str(tmp_path / "log.json")]
    assert main(command) == 0
    assert "1 built, 0 were there" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 built, 1 were there" in capsys.readouterr().out
    [entry] = json.loads((tmp_path / "log.json").read_text())["plans"]
    assert entry["hit"]
    assert main(["inspect", str(toy_export)]) == 0
    assert "good" in capsys.readouterr().out
    assert main(["inspect", entry["plan"], "--json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)
    assert (shown["manifest"], shown["refusal"]) == (entry["manifest"], None)


@pytest.mark.skipif(device_capability() is not None, reason="there is a GPU")
def test_without_a_gpu_no_plan_runs_here(toy_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(toy_export), "--component", "text_encoder"]) == 0
    assert main(["inspect", str(toy_export), "--here"]) == 1
    assert "needs an NVIDIA GPU and its driver, and none is here" in capsys.readouterr().out


def test_a_refused_plan_gives_exit_code_1(toy_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(toy_export), "--component", "text_encoder"]) == 0
    next(toy_export.glob("plans/*.plan")).write_bytes(b"")
    assert main(["inspect", str(toy_export)]) == 1
    assert "refused" in capsys.readouterr().out


def test_errors_are_one_sentence_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    for command in (["build", folder], ["build", folder, "--rows", "8"], ["inspect", folder], ["verify", folder]):
        assert main(command) == 1
        shown = capsys.readouterr()
        assert (shown.out, shown.err.count("\n")) == ("", 1)
        assert shown.err.startswith("engines: ")


@pytest.mark.parametrize(
    ("error", "told"),
    [(KeyboardInterrupt(), "interrupted"), (ImportError("no filelock"), "pip install"), (OSError("broken"), "broken")],
)
def test_what_else_goes_wrong_is_told(
    error: BaseException, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(build, "build", fail)
    assert main(["build", "folder"]) == 1
    assert told in capsys.readouterr().err
