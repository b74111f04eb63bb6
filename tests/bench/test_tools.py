"""The input files for perf_analyzer and AIPerf ask for what the server takes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.fields import FIELD_BY_NAME
from server.request import Limits, Request

TOOLS = Path(__file__).resolve().parents[2] / "bench" / "tools"
PYTHON_TYPES = {"STRING": str, "INT64": int, "FP32": float}
STREAM_ONLY = {"progress_interval", "preview_interval", "stream_images"}
LIMITS = Limits(((128, 128), (192, 192)))

Tensors = Mapping[str, Sequence[Any]]


def perf_analyzer_requests(file: Path) -> list[Tensors]:
    """Of its `--input-data`: one entry per request, `content` and `shape` per tensor."""
    entries = json.loads(file.read_text(encoding="utf-8"))["data"]
    assert all(tensor["shape"] == [len(tensor["content"])] for entry in entries for tensor in entry.values())
    return [{name: tensor["content"] for name, tensor in entry.items()} for entry in entries]


def aiperf_requests(file: Path) -> list[Tensors]:
    """Of its `inputs-json`: sessions of one request each, whose body is sent to Triton's generate as it is."""
    sessions = json.loads(file.read_text(encoding="utf-8"))["data"]
    assert len({session["session_id"] for session in sessions}) == len(sessions)
    assert {len(session["payloads"]) for session in sessions} == {1}
    return [{name: [value] for name, value in session["payloads"][0].items()} for session in sessions]


FILES = {
    "perf_analyzer.json": perf_analyzer_requests,
    "perf_analyzer_stream.json": perf_analyzer_requests,
    "aiperf.json": aiperf_requests,
    "aiperf_stream.json": aiperf_requests,
}


def test_every_file_is_checked() -> None:
    assert {file.name for file in TOOLS.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_requests_are_ones_that_the_server_takes(name: str) -> None:
    requests = FILES[name](TOOLS / name)
    assert len(requests) == 24
    for tensors in requests:
        for field, values in tensors.items():
            assert [type(value) for value in values] == [PYTHON_TYPES[FIELD_BY_NAME[field].datatype]], field
        Request.parse({field: [_received(value) for value in values] for field, values in tensors.items()}, LIMITS)


@pytest.mark.parametrize("name", FILES)
def test_they_are_mixed_and_never_the_same_picture(name: str) -> None:
    requests = FILES[name](TOOLS / name)
    assert {tuple(tensors["num_inference_steps"]) for tensors in requests} == {(4,), (20,), (50,)}
    assert len({tuple(tensors["sampler"]) for tensors in requests}) == 3
    # A seed that comes again would be answered from a response cache.
    assert all("seed" not in tensors for tensors in requests)
    # perf_analyzer takes the inputs of the first entry for those of all.
    assert len({tuple(tensors) for tensors in requests}) == 1


@pytest.mark.parametrize("name", FILES)
def test_only_streams_tell_progress(name: str) -> None:
    for tensors in FILES[name](TOOLS / name):
        assert bool(STREAM_ONLY & set(tensors)) == ("stream" in name)
        assert ("encoding" in tensors) == name.startswith("aiperf")


def _received(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
