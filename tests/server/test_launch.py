"""What is told before a server is started."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

import server.installation
import server.launch
from engines.component import PIPELINE_FILE
from engines.errors import ArtefactError
from server.__main__ import main, parser
from server.config import Backend, ServerConfig
from server.errors import ScheduleError, StartupError
from server.installation import find_installation
from server.launch import DRAIN_SECONDS, check_deployment
from server.ports import Ports, free_ports
from server.sampler_names import SAMPLERS
from server.supervisor import HANG_SECONDS


@pytest.fixture
def copy(fake_export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fake_export, tmp_path / "export"))


def test_a_good_deployment_passes(fake_export: Path) -> None:
    check_deployment(ServerConfig(model=fake_export, provider="fake"))
    check_deployment(ServerConfig(model=fake_export, more=(("again", fake_export),), provider="fake"))


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_backend_that_this_tritonserver_lacks_is_told_with_the_remedy(fake_export: Path, backend: Backend) -> None:
    """The one that comes in a wheel has the Python backend only."""
    with pytest.raises(StartupError, match=f"has no backend '{backend}'; use NVIDIA's Triton image, or --backend py"):
        check_deployment(ServerConfig(model=fake_export, provider="fake", backend=backend))


@pytest.mark.parametrize(
    ("family", "task"), [("sd1", "refining"), ("sdxl", "text_to_image"), ("controlnet", "control")]
)
def test_another_kind_of_checkpoint_is_told(copy: Path, family: str, task: str) -> None:
    content = json.loads((copy / PIPELINE_FILE).read_text())
    (copy / PIPELINE_FILE).write_text(json.dumps({**content, "family": family, "task": task}))
    with pytest.raises(
        StartupError, match=f"is an {family} checkpoint for {task}; launch an export of sd1 for text_to_image, "
    ):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_components_that_were_not_exported_are_told(copy: Path) -> None:
    content = json.loads((copy / PIPELINE_FILE).read_text())
    del content["components"]["vae_decoder"]
    (copy / PIPELINE_FILE).write_text(json.dumps(content))
    with pytest.raises(StartupError, match="was exported without vae_decoder; export every component"):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_a_unet_that_takes_residuals_is_told(copy: Path) -> None:
    content = json.loads((copy / PIPELINE_FILE).read_text())
    residual = {"name": "mid_residual", "dtype": "float32", "shape": ["rows", 8, "height/8", "width/8"]}
    content["components"]["unet"]["inputs"].append(residual)
    (copy / PIPELINE_FILE).write_text(json.dumps(content))
    with pytest.raises(StartupError, match="was exported for a ControlNet; export it without --controlnet"):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_missing_onnx_file_is_told(fake_export: Path) -> None:
    with pytest.raises(ArtefactError, match=r"text_encoder\.onnx does not exist; run `python -m export` again"):
        check_deployment(ServerConfig(model=fake_export, provider="cpu"))


def test_damaged_tokenizer_is_told(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ArtefactError, match="tokenizer"):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_unknown_schedule_is_told(copy: Path) -> None:
    content = json.loads((copy / PIPELINE_FILE).read_text())
    content["schedule"]["beta_schedule"] = "sigmoid"
    (copy / PIPELINE_FILE).write_text(json.dumps(content))
    with pytest.raises(ScheduleError, match="beta_schedule is 'sigmoid'"):
        check_deployment(ServerConfig(model=copy, provider="fake"))


def test_too_little_shared_memory_is_told(fake_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.launch, "SHARED_MEMORY_BYTES", 1 << 60)
    with pytest.raises(StartupError, match=r"/dev/shm has \d+ MiB free"):
        check_deployment(ServerConfig(model=fake_export, provider="fake"))


@pytest.mark.parametrize("damage", ["missing", "no json", "not a folder"])
def test_launch_says_one_sentence(copy: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = copy
    if damage == "missing":
        model = copy / "nothing"
    elif damage == "no json":
        (copy / PIPELINE_FILE).write_text("not json")
    else:
        model = copy / PIPELINE_FILE
    assert main(["launch", "--model", str(model)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("launch: ")
    assert error.count("\n") == 1
    assert "python -m export" in error


def test_no_tritonserver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.installation, "CONTAINER_SERVER", Path("/nonexistent/tritonserver"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartupError, match="pip install nvidia-pytriton"):
        find_installation()


def test_container_server_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executable = tmp_path / "tritonserver"
    executable.touch()
    monkeypatch.setattr(server.installation, "CONTAINER_SERVER", executable)
    assert find_installation().executable == executable
    assert find_installation().backends is None


def test_free_ports_differ() -> None:
    ports = free_ports()
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert 0 not in (ports.http, ports.grpc, ports.metrics)
    assert ports.chosen("127.0.0.1") == ports


def test_a_port_that_is_taken_is_told(fake_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = ["--http-port", "0", "--grpc-port", str(taken), "--metrics-port", "0"]
        assert main(["launch", "--model", str(fake_export), "--provider", "fake", *ports]) == 1
    assert capsys.readouterr().err == (
        f"launch: port {taken} of 127.0.0.1, meant for gRPC, is taken; "
        "stop what listens there, or choose another with --grpc-port\n"
    )


@pytest.mark.parametrize(
    ("address", "ports", "message"),
    [
        (
            "127.0.0.1",
            (0, 0, 70000),
            r"port 70000 for metrics does not exist; give one up to 65535 with --metrics-port",
        ),
        ("127.0.0.1", (-1, 0, 0), r"port -1 for HTTP does not exist"),
        ("192.0.2.1", (0, 0, 0), r"port 0 of 192\.0\.2\.1, meant for HTTP, cannot be listened on .*change --address"),
        ("nowhere.invalid", (0, 0, 0), r"of nowhere\.invalid, meant for HTTP, cannot be listened on"),
    ],
)
def test_ports_that_cannot_be_had_are_told(address: str, ports: tuple[int, int, int], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        Ports(*ports).chosen(address)


def test_a_port_that_is_given_twice_is_told() -> None:
    http = free_ports().http
    with pytest.raises(StartupError, match="give each a port of its own"):
        Ports(http, http, 0).chosen("127.0.0.1")


def test_launch_waits_as_long_as_the_supervisor_does() -> None:
    options = parser().parse_args(["launch", "--model", "x"])
    assert (options.grace_seconds, options.hang_seconds) == (DRAIN_SECONDS, HANG_SECONDS)


def test_samplers_lists_canonical_names_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == [sampler.name for sampler in SAMPLERS]
    assert all(part in lines["dpmpp_2m"] for part in ("DPM++ 2M", "DPMSolverMultistepScheduler", "schedule"))
    assert all(part in lines["lms"] for part in ("LMS", "LMSDiscreteScheduler", "solver_order", "schedule"))
    assert all(part in lines["heun"] for part in ("Heun", "2n - 1"))
    assert "schedule" not in lines["pndm"]
