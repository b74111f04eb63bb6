"""The Dockerfile and compose.yaml as far as they can be read without a container engine."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.__main__ import parser
from server.ports import free_ports

yaml: Any = importlib.import_module("yaml")

ROOT = Path(__file__).resolve().parent.parent
READY = "http://127.0.0.1:8000/v2/health/ready"
PACKAGES = {"engines", "export", "server", "bench", "model_repository"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of each line of the Dockerfile, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each named stage."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for instruction, rest in instructions():
        if instruction == "FROM":
            current = found.setdefault(rest.split(" AS ")[-1], [])
        current.append((instruction, rest))
    return found


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return content


def test_the_image_is_nvidias_of_a_fixed_tag() -> None:
    ((_, tag),) = [one for one in instructions() if one[0] == "ARG"]
    year, month = re.fullmatch(r"TRITON_TAG=(\d+)\.(\d+)-py3", tag).groups()  # type: ignore[union-attr]
    assert (int(year), int(month)) >= (26, 7)
    froms = [rest for instruction, rest in instructions() if instruction == "FROM"]
    assert froms[0] == "nvcr.io/nvidia/tritonserver:${TRITON_TAG} AS serve"
    assert froms[-1] == "serve"


@pytest.mark.parametrize("stage", ["serve", "plans"])
def test_nobody_is_root_in_the_end(stage: str) -> None:
    users = [rest for instruction, rest in stages()[stage] if instruction == "USER"]
    assert users[-1] == "10001:10001"


def test_the_server_is_asked_for_its_health_and_stopped_by_a_signal_that_it_heeds() -> None:
    serve = dict(stages()["serve"])
    assert READY in serve["HEALTHCHECK"]
    assert serve["STOPSIGNAL"] == "SIGTERM"
    assert serve["EXPOSE"].split() == ["8000", "8001", "8002"]


def test_all_packages_are_in_the_image_and_nothing_that_is_not_there() -> None:
    copied = [rest.split()[:-1] for instruction, rest in stages()["serve"] if instruction == "COPY"]
    sources = {source for line in copied for source in line}
    assert sources >= PACKAGES | {"pyproject.toml", "constraints.txt"}
    assert all((ROOT / source).exists() for source in sources)


def test_no_secret_is_in_the_image() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8") + (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert not re.search(r"(?i)password|secret|token|api[_-]?key|credential", text)
    assert not [rest for instruction, rest in instructions() if instruction == "COPY" and rest.split()[0] == "."]


def test_the_commands_are_the_programs_own() -> None:
    """Entry point and command together are arguments that `server launch` takes."""
    entry = yaml.safe_load(dict(stages()["serve"])["ENTRYPOINT"])
    assert entry[:3] == ["python3", "-m", "server"]
    for command in (yaml.safe_load(dict(stages()["serve"])["CMD"]), compose()["services"]["aquatint"]["command"]):
        options = parser().parse_args([*entry[3:], *command])
        assert (options.verb, options.address) == ("launch", "0.0.0.0")
        assert all(str(folder).startswith("/models/") for _, folder in options.model)
    assert yaml.safe_load(dict(stages()["plans"])["ENTRYPOINT"]) == ["python3", "-m", "engines"]


@pytest.mark.parametrize("name", ["aquatint", "plans"])
def test_a_service_has_as_few_rights_as_it_needs(name: str) -> None:
    service = compose()["services"][name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert service["build"]["target"] in stages()


def test_models_are_read_only_to_the_server_and_only_to_it() -> None:
    services = compose()["services"]
    for name, read_only in (("aquatint", True), ("plans", False)):
        models = {volume["target"]: volume.get("read_only", False) for volume in services[name]["volumes"]}
        assert models == {"/models": read_only, "/cache": False}


def test_the_server_has_the_memory_that_its_models_share_and_time_to_drain() -> None:
    server = compose()["services"]["aquatint"]
    assert server["shm_size"] == "1gb"
    grace = parser().parse_args(["launch", "--model", "m"]).grace_seconds
    assert int(server["stop_grace_period"].removesuffix("s")) > grace
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert READY in server["healthcheck"]["test"][-1]


def test_the_health_check_fails_where_nobody_answers() -> None:
    command = compose()["services"]["aquatint"]["healthcheck"]["test"]
    program = command[-1].replace(":8000", f":{free_ports().http}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "URLError" in done.stderr
