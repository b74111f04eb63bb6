"""What is told before a server is started."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from pathlib import Path

import pytest

import server.installation
from engines.component import PIPELINE_FILE
from server.__main__ import main, parser
from server.config import ServerConfig
from server.errors import StartupError
from server.installation import find_installation
from server.launch import DRAIN_SECONDS, MODELS_FOLDER, START_SECONDS, Condition, TritonServer
from server.ports import Ports, free_ports
from server.sampler_names import SAMPLERS
from server.supervisor import HANG_SECONDS


@pytest.fixture
def copy(fake_export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fake_export, tmp_path / "export"))


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


class Unstarted(TritonServer):
    """All but the process."""

    def _spawn(self) -> None:
        self._ready = True

    def _terminate(self, hurry: Condition) -> None:
        self._ready = False

    def _wait_until_ready(self, cancelled: Condition) -> None:
        assert (self.folder / MODELS_FOLDER / "stable_diffusion" / "config.pbtxt").is_file()


def test_the_servers_folder_is_claimed_against_cleaners_by_age(fake_export: Path) -> None:
    server = Unstarted(ServerConfig(model=fake_export, provider="fake"))
    server.start()
    folder = server.folder
    other = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    server.stop()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    assert not folder.exists()


def test_a_server_whose_folder_was_taken_away_starts_again_and_stops(
    fake_export: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Unstarted(ServerConfig(model=fake_export, provider="fake")) as server:
        shutil.rmtree(server.folder)
        server.restart()
        assert (server.folder / MODELS_FOLDER / "stable_diffusion_stream" / "config.pbtxt").is_file()
        shutil.rmtree(server.folder)
        server.stop(grace_seconds=0.1)
    assert "the server cannot be told to drain" in caplog.text


def test_launch_waits_as_long_as_the_supervisor_does() -> None:
    options = parser().parse_args(["launch", "--model", "x"])
    given = (options.grace_seconds, options.hang_seconds, options.start_seconds)
    assert given == (DRAIN_SECONDS, HANG_SECONDS, START_SECONDS)


def test_samplers_lists_canonical_names_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == [sampler.name for sampler in SAMPLERS]
    assert all(part in lines["dpmpp_2m"] for part in ("DPM++ 2M", "DPMSolverMultistepScheduler", "schedule"))
    assert all(part in lines["lms"] for part in ("LMS", "LMSDiscreteScheduler", "solver_order", "schedule"))
    assert all(part in lines["heun"] for part in ("Heun", "2n - 1"))
    assert "schedule" not in lines["pndm"]
