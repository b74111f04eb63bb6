"""`python -m export`: exit codes, one sentence on standard error, no traceback."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.component import PipelineSpec
from export import trace
from export.__main__ import main, parser
from export.architectures import ARCHITECTURES
from export.checkpoint import Checkpoint
from export.errors import ParityError
from tests.small_architectures import small

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("max_abs", "mean_abs", "max_scaled", "limit")


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint to damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def traced(tiny_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of tracing and comparing, copy what was traced before."""

    def copy(network: Any, inputs: Any, outputs: Any, path: Path, plan: Any, *told: Any) -> None:
        shutil.copyfile(tiny_export / path.name, path)

    monkeypatch.setattr(trace, "export_onnx", copy)
    monkeypatch.setattr(trace, "references", lambda *given: [])
    monkeypatch.setattr(trace, "compare", lambda *given: dict.fromkeys(FIGURES, 0.0))


def test_resolutions_are_collected() -> None:
    options = parser().parse_args(["c", "--out", "o", "--resolution", "64", "--resolution", "128x64"])
    assert options.resolution == [(64, 64), (128, 64)]
    assert (options.out, options.precision) == (Path("o"), "fp32")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: --out"),
        (["c"], "the following arguments are required: --out"),
        (["--out", "o"], "give either a checkpoint to export, or --random-weights"),
        (["c", "--out", "o", "--random-weights", "sd21"], "give either a checkpoint to export, or --random-weights"),
        (["--out", "o", "--random-weights", "sd3"], "invalid choice: 'sd3'"),
        (["c", "--out", "o", "--component", "vae"], "invalid choice: 'vae'"),
        (["c", "--out", "o", "--resolution", "12a"], "'12a' is no resolution"),
        (["c", "--out", "o", "--precision", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_arguments_end_with_code_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_an_up_to_date_export_ends_with_code_0(
    tiny_checkpoint: Path, tiny_export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(trace, "trace_component")
    arguments = [str(tiny_checkpoint), "--out", str(tiny_export), "--resolution", "64", "--resolution", "128x128"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    table, (summary, _) = said.splitlines()[:5], said.splitlines()[-2:]
    assert [line.split()[:2] for line in table[1:]] == [
        [name, "fp32"] for name in PipelineSpec.read(tiny_export).components
    ]
    assert summary.startswith("at most ")
    assert said.endswith("/checkpoint, text_encoder, unet, vae_encoder, vae_decoder\n")


@pytest.mark.usefixtures("traced")
def test_the_checkpoints_own_resolution_is_the_default(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert main([str(tiny_checkpoint), "--out", str(tmp_path)]) == 0
    assert PipelineSpec.read(tmp_path).resolutions == ((64, 64),)


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def no_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def eight_channels(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_channels": 8}))


def cut_weights(folder: Path) -> None:
    path = folder / "text_encoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "does not exist; give a diffusers folder"),
        (no_index, "model_index.json does not exist"),
        (broken_index, "model_index.json cannot be read"),
        (no_unet, "has no unet"),
        (eight_channels, "takes 8 channels"),
        (cut_weights, "text_encoder cannot be loaded"),
    ],
)
def test_a_bad_checkpoint_ends_with_code_1_and_one_sentence(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], None], said: str
) -> None:
    damage(folder)
    assert main([str(folder), "--out", str(tmp_path / "export")]) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("export: ")
    assert said in line
    assert not (tmp_path / "export" / "pipeline.json").exists()


def test_a_bad_resolution_ends_with_code_1_and_one_sentence(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_checkpoint), "--out", str(tmp_path), "--resolution", "100"]) == 1
    assert capsys.readouterr().err == (
        "export: resolution 100x100 does not fit: both sides must be multiples of 64 pixels, such as 64x64 or 128x128\n"
    )


def test_a_file_in_the_place_of_the_folder_ends_with_code_1(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export").touch()
    assert main([str(tiny_checkpoint), "--out", str(tmp_path / "export")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export: ")
    assert str(tmp_path / "export") in line


@pytest.mark.usefixtures("traced")
def test_a_component_that_differs_from_torch_ends_with_code_1(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def differ(*arguments: Any) -> Any:
        raise ParityError("unet differs")

    monkeypatch.setattr(trace, "compare", differ)
    assert main([str(tiny_checkpoint), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "export: unet differs"


def test_the_command_fails_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "export")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"export: {tmp_path / 'nowhere'} does not exist; "
        "give a diffusers folder, a .safetensors file, or a hub id such as owner/name\n"
    )


def test_an_up_to_date_export_needs_no_torch(tiny_checkpoint: Path, tiny_export: Path) -> None:
    program = (
        "import sys; from export.__main__ import main; code = main(sys.argv[1:]); "
        "print(code, {'torch', 'diffusers', 'transformers', 'onnx'} & set(sys.modules))"
    )
    options = [str(tiny_checkpoint), "--out", str(tiny_export), "--resolution", "64", "--resolution", "128x128"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 set()"


def test_help_needs_no_torch() -> None:
    program = "import sys; from export.__main__ import parser; parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_random_weights_alone_write_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "controlnet-sd15", small("controlnet-sd15"))
    for _ in range(2):
        assert main(["--random-weights", "controlnet-sd15", "--seed", "7", "--out", str(tmp_path / "c")]) == 0
        assert capsys.readouterr().out == (
            f"{tmp_path / 'c'}: controlnet-sd15 with random weights; its pictures are noise\n"
        )
    assert Checkpoint.open(str(tmp_path / "c")).family == "controlnet"
    assert main(["--random-weights", "controlnet-sd15", "--out", str(tmp_path / "c")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"export: {tmp_path / 'c'} exists and is not controlnet-sd15, seed 0; remove it, or give another --out"
    )


@pytest.mark.parametrize("arguments", [["--random-weights", "controlnet-sd15"], ["CHECKPOINT", "--resolution", "64"]])
def test_a_place_that_cannot_be_written_ends_with_code_1(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    given = [str(tiny_checkpoint) if word == "CHECKPOINT" else word for word in arguments]
    assert main([*given, "--out", "/proc/self/nowhere/out"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "export: /proc/self/nowhere/out cannot be written (No such file or directory); "
        "give another --out, or make room there"
    )


@pytest.mark.slow
def test_a_full_disk_ends_with_code_1_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Files of this process may not grow beyond 100 kB, as though that were the room left."""
    program = (
        "import resource, sys; from export.__main__ import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, str(tiny_checkpoint), "--out", str(tmp_path / "export")]
    options = ["--component", "text_encoder", "--resolution", "64"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"export: {tmp_path / 'export'} cannot be written (File too large); give another --out, or make room there"
    )
    assert not (tmp_path / "export").exists()
