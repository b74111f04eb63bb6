"""The real tritonserver on a fake accelerator: cancelling, previews, deadlines, metrics, many requests at once."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2_grpc

from server.client import Client
from server.config import ServerConfig
from server.errors import Cancelled, NotFound, Overloaded, ServerError, TimedOut
from server.launch import TritonServer
from server.protocol import message_of
from server.repository import FACE, STREAM

pytestmark = pytest.mark.triton
CALL_SECONDS = 0.02
# A server that is broken must fail a test, not hang it.
ANSWER_SECONDS = 120.0
# In-process components, so that pictures cost the test nothing.
FAST: dict[str, Any] = {"provider": "fake", "text_encoder": "in_process", "vae_decoder": "in_process"}
LONG: dict[str, Any] = {"prompt": "a", "num_inference_steps": 500, "sampler": "euler"}


@pytest.fixture(scope="module")
def server(fake_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    curve = ((2, CALL_SECONDS), (16, CALL_SECONDS))
    with TritonServer(ServerConfig(model=fake_export, step_seconds=curve, **FAST), log=log) as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url, timeout=ANSWER_SECONDS) as made:
        yield made


def metrics(server: TritonServer) -> dict[str, float]:
    """Every series of ours by its name with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10) as answer:
        lines = re.findall(r"^(aquatint_\S+(?:\{[^}]*\})?) (\S+)$", answer.read().decode(), re.M)
    return {name: float(value) for name, value in lines}


def total(server: TritonServer, name: str) -> float:
    return sum(value for series, value in metrics(server).items() if series.split("{")[0] == name)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - started


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that keeps what `call` returns or raises."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(call())
        except ServerError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def begun(server: TritonServer, request: Mapping[str, Any]) -> tuple[threading.Thread, list[object]]:
    """A unary request in the background, once its calls are being made."""
    before = total(server, "aquatint_rows_total")

    def ask() -> object:
        with Client(server.grpc_url) as one:
            return one.generate(**request)

    thread, found = in_background(ask)
    wait_until(lambda: total(server, "aquatint_rows_total") > before)
    return thread, found


def idle(server: TritonServer) -> bool:
    return total(server, "aquatint_running") + total(server, "aquatint_waiting") == 0


def test_previews_progress_and_images_come_on_the_way(client: Client) -> None:
    events: list[Mapping[str, Any]] = []
    previews: list[tuple[Mapping[str, Any], bytes]] = []
    pictures: list[int] = []
    result = client.stream(
        events.append,
        lambda event, data: previews.append((event, data)),
        lambda event, data: pictures.append(event["image"]),
        prompt="a",
        num_inference_steps=20,
        num_images=2,
        preview_interval=4,
        seed=1,
    )
    assert {event["step"] for event in events} >= {1, 39, 40}
    left = [event["seconds_left"] for event in events if event["step"]]
    assert left[0] > left[-1] >= 0
    assert {"queue_position", "total"} <= set(events[0])
    assert {event["image"] for event, _ in previews} == {0, 1}
    assert {event["step"] for event, _ in previews} <= {4, 8, 12, 16}
    for _, data in previews:
        picture = Image.open(io.BytesIO(data))
        assert picture.format == "JPEG"
        assert max(picture.size) <= 256
        assert len(data) <= 20_000
    assert sorted(pictures) == [0, 1]
    assert len(result.images) == 2


def test_a_request_is_cancelled_by_its_id(server: TritonServer, client: Client) -> None:
    thread, found = begun(server, {**LONG, "request_id": "one"})
    assert client.cancel("one") == 1
    thread.join(5)
    assert isinstance(found[0], Cancelled)
    with pytest.raises(NotFound, match="'one'"):
        client.cancel("one")


def test_a_request_is_cancelled_by_tritons_id_over_http(server: TritonServer) -> None:
    fields = {"prompt": ("BYTES", "a"), "num_inference_steps": ("INT64", 500)}
    inputs = [{"name": name, "datatype": kind, "shape": [1], "data": [v]} for name, (kind, v) in fields.items()]
    body = {"id": "two", "inputs": inputs}
    url = f"{server.http_url}/v2/models/{FACE}"

    def ask() -> object:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(f"{url}/infer", json.dumps(body).encode()), timeout=60)
        return caught.value.read().decode()

    before = total(server, "aquatint_rows_total")
    thread, found = in_background(ask)
    wait_until(lambda: total(server, "aquatint_rows_total") > before)
    with urllib.request.urlopen(f"{url}/generate", b'{"cancel": "two"}', timeout=10) as answer:
        assert json.loads(json.loads(answer.read())["metadata"]) == {"cancelled": 1}
    thread.join(5)
    assert "cancelled by its id" in str(found[0])


def test_a_partial_result_is_given_on_request(server: TritonServer, client: Client) -> None:
    thread, found = begun(server, {**LONG, "request_id": "three", "partial_result": 1})
    client.cancel("three")
    thread.join(5)
    result: Any = found[0]
    assert len(result.images) == 1
    assert 0 < result.metadata["partial"]["steps_done"]["0"] < 500


def test_a_unary_client_that_leaves_is_noticed(server: TritonServer) -> None:
    saved = total(server, "aquatint_cancelled_steps_saved_total")
    with grpc.insecure_channel(server.grpc_url) as channel:
        before = total(server, "aquatint_rows_total")
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(message_of(FACE, LONG))
        wait_until(lambda: total(server, "aquatint_rows_total") > before)
        call.cancel()
        wait_until(lambda: total(server, "aquatint_cancelled_steps_saved_total") > saved)
    wait_until(lambda: idle(server))


def test_an_http_client_that_leaves_is_noticed_by_its_progress_events(server: TritonServer) -> None:
    saved = total(server, "aquatint_cancelled_steps_saved_total")
    body = json.dumps({**LONG, "progress_interval": 1}).encode()
    address, port = server.http_url.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port))) as connection:
        head = f"POST /v2/models/{STREAM}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert b"200 OK" in connection.recv(4096)
    wait_until(lambda: total(server, "aquatint_cancelled_steps_saved_total") > saved)
    wait_until(lambda: idle(server))


def test_deadlines_are_kept_or_refused(server: TritonServer, client: Client) -> None:
    with pytest.raises(Overloaded, match=r"takes about \d+ ms even alone"):
        client.generate(**LONG, timeout_ms=1000)
    fits = client.generate(prompt="a", num_inference_steps=4, timeout_ms=5000)
    assert fits.images


@pytest.mark.parametrize("ask", ["generate", "stream"])
def test_a_client_may_bound_how_long_it_waits(server: TritonServer, ask: str) -> None:
    with Client(server.grpc_url, timeout=0.3) as impatient, pytest.raises(TimedOut):
        getattr(impatient, ask)(**LONG)
    wait_until(lambda: idle(server))


def test_everything_that_happened_is_in_the_metrics(server: TritonServer, client: Client) -> None:
    client.generate(prompt="a", num_inference_steps=2)
    with contextlib.suppress(ServerError):
        client.generate(prompt="a", num_inference_steps=0)
    wait_until(lambda: metrics(server)['aquatint_requests_total{outcome="invalid"}'] >= 1)
    found = metrics(server)
    assert found['aquatint_requests_total{outcome="ok"}'] >= 1
    assert found["aquatint_request_seconds_count"] >= 1
    assert time.time() - found["aquatint_loop_heartbeat_timestamp_seconds"] < 5
    for name in ("queue_seconds_count", "denoise_seconds_count", "decode_seconds_count", "encode_seconds_count"):
        assert found[f"aquatint_{name}"] >= 1
    assert total(server, "aquatint_images_total") >= 1
    assert total(server, "aquatint_embedding_cache_hits_total") >= 1


def test_512_requests_at_once_are_all_answered_and_one_of_another_client_soon(server: TritonServer) -> None:
    """8 images share a call of 0.02 s: all of it takes 512 / 8 * 4 * 0.02 s = 5 s at least."""
    waited: dict[str, float] = {}

    def ask(client_id: str, seed: int) -> int:
        started = time.monotonic()
        with Client(server.grpc_url, timeout=ANSWER_SECONDS) as one:
            result = one.generate(prompt="a", num_inference_steps=4, seed=seed, client_id=client_id)
        waited[f"{client_id}-{seed}"] = time.monotonic() - started
        return len(result.images)

    with ThreadPoolExecutor(513) as pool:
        many = [pool.submit(ask, "many", seed) for seed in range(512)]
        wait_until(lambda: total(server, "aquatint_rows_total") > 0 and len(waited) > 20, 60)
        single = pool.submit(ask, "single", 0)
        assert single.result() == 1
        assert sum(not one.done() for one in many) > 100, "another client's request waits behind few of the many"
        assert sum(one.result() for one in many) == 512
    wait_until(lambda: idle(server))
