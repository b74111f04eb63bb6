"""The real tritonserver on the embedded checkpoint: gRPC, streams, HTTP, README's commands, bad requests."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from PIL import Image
from tritonclient.utils import InferenceServerException

from server.__main__ import main
from server.client import Client
from server.config import Placement, ServerConfig
from server.errors import InvalidRequest, ServerError
from server.launch import TritonServer
from server.repository import FACE, STREAM

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parent.parent.parent
PROMPT = "a red circle on a blue background"
QUICK: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 4, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def server(embedded_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    config = ServerConfig(model=embedded_export, provider="cpu", queue_limit=64, row_cap=16)
    with TritonServer(config, log=log) as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as made:
        yield made


def post(server: TritonServer, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an HTTP answer."""
    request = urllib.request.Request(f"{server.http_url}/v2/models/{path}", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def raw_infer(server: TritonServer, *tensors: Any) -> Any:
    """A request that our client would not send."""
    with grpc.InferenceServerClient(server.grpc_url) as made:
        return made.infer(FACE, list(tensors))


def tensor(name: str, array: Any, datatype: str) -> Any:
    made = grpc.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def test_unary_and_stream_give_the_same_picture(client: Client) -> None:
    steps: list[tuple[int, int]] = []
    streamed = client.stream(lambda event: steps.append((event["step"], event["total"])), **QUICK)
    unary = client.generate(**QUICK)
    assert unary.images == streamed.images
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert unary.pixels()[0].shape == (128, 128, 3)


def test_other_placements_give_the_same_picture(client: Client, embedded_export: Path, tmp_path: Path) -> None:
    places: dict[str, Placement] = {"text_encoder": "in_process", "unet": "triton", "vae_decoder": "in_process"}
    config = ServerConfig(model=embedded_export, provider="cpu", **places)  # type: ignore[arg-type]
    with TritonServer(config, log=tmp_path / "log") as other, Client(other.grpc_url) as second:
        assert second.generate(**QUICK).images == client.generate(**QUICK).images


def test_prompt_is_drawn(client: Client) -> None:
    result = client.generate(prompt=PROMPT, seed=1, num_inference_steps=20, guidance_scale=4.0, sampler="dpmpp_2m")
    pixels = result.pixels()[0].astype(int)
    centre, corner = pixels[60:68, 60:68].mean(axis=(0, 1)), pixels[4:12, 4:12].mean(axis=(0, 1))
    assert centre[0] > centre[2] + 60, "the middle is not red"
    assert corner[2] > corner[0] + 60, "the corner is not blue"


def test_concurrent_requests_share_calls_and_equal_single_ones(server: TritonServer) -> None:
    requests = [
        {**QUICK, "seed": i, "num_inference_steps": 3 + i, "sampler": sampler, "output_format": "raw"}
        for i, sampler in enumerate(["euler", "ddim", "dpmpp_2m", "euler_ancestral"] * 2)
    ]

    def ask(fields: dict[str, Any]) -> Any:
        with Client(server.grpc_url) as one:
            return one.generate(**fields)

    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(ask, requests))
    timing = [result.metadata["timing"] for result in together]
    assert sum(t["unet_rows"] for t in timing) / sum(t["unet_calls"] for t in timing) > 2.5
    for fields, result in zip(requests[:4], together, strict=False):
        alone = np.frombuffer(ask(fields).images[0], np.uint8).astype(int)
        assert np.abs(alone - np.frombuffer(result.images[0], np.uint8)).max() <= 1


def test_two_images_in_jpeg(client: Client) -> None:
    result = client.generate(**QUICK, num_images=2, output_format="jpeg", height=192)
    assert [Image.open(io.BytesIO(data)).format for data in result.images] == ["JPEG", "JPEG"]
    assert [pixels.shape for pixels in result.pixels()] == [(192, 192, 3)] * 2
    assert result.metadata["seeds"] == [3, 4]


BAD: list[tuple[str, Any, str, str]] = [
    ("num_inference_steps", np.array([0]), "INT64", r"num_inference_steps is 0.*from 1 to 500"),
    ("num_inference_steps", np.array([10**9]), "INT64", r"num_inference_steps is 1000000000.*from 1 to 500"),
    ("num_inference_steps", np.array([5, 6]), "INT64", r"num_inference_steps has 2 values.*shape \[1\]"),
    ("num_inference_steps", np.array([], np.int64), "INT64", r"num_inference_steps has 0 values"),
    ("num_inference_steps", np.array([[5]]), "INT64", r"num_inference_steps"),
    ("num_inference_steps", np.array([5.0], np.float32), "FP32", r"num_inference_steps.*FP32.*INT64"),
    ("guidance_scale", np.array([np.nan], np.float32), "FP32", r"guidance_scale is nan.*from 0 to 100"),
    ("guidance_scale", np.array([np.inf], np.float32), "FP32", r"guidance_scale is inf"),
    ("seed", np.array([-1]), "INT64", r"seed is -1.*from 0 to 9223372036854775807"),
    ("seed", np.array([2**64 - 1], np.uint64), "UINT64", r"seed.*UINT64.*INT64"),
    ("sampler", np.array([b"eular"], np.object_), "BYTES", r"sampler is 'eular'.*did you mean 'euler'"),
    ("height", np.array([100]), "INT64", r"100x.*128x128, 192x192"),
    ("negative_prompt", np.array([b"x" * 1_000_000], np.object_), "BYTES", r"negative_prompt has 1000000 bytes"),
    ("negative_prompt", np.array([b"ok \xff\xfe"], np.object_), "BYTES", r"negative_prompt is not valid UTF-8.*0xff"),
    ("banana", np.array([1]), "INT64", r"banana"),
]


@pytest.mark.parametrize(("name", "array", "datatype", "message"), BAD, ids=lambda value: str(value)[:24])
def test_bad_input_is_answered_over_grpc(
    server: TritonServer, name: str, array: Any, datatype: str, message: str
) -> None:
    prompt = tensor("prompt", np.array([PROMPT.encode()], np.object_), "BYTES")
    with pytest.raises(InferenceServerException, match=message) as caught:
        raw_infer(server, prompt, tensor(name, array, datatype))
    assert str(caught.value.status()) == "StatusCode.INVALID_ARGUMENT"


def test_missing_prompt_is_answered_over_grpc(server: TritonServer) -> None:
    with pytest.raises(InferenceServerException, match="prompt is missing") as caught:
        raw_infer(server, tensor("seed", np.array([1]), "INT64"))
    assert str(caught.value.status()) == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("name", ["timeout_ms", "seed", "priority_of_mine"])
def test_a_field_that_came_as_a_parameter_is_refused(server: TritonServer, name: str) -> None:
    with grpc.InferenceServerClient(server.grpc_url) as made, pytest.raises(InferenceServerException, match=name):
        made.infer(FACE, [tensor("prompt", np.array([PROMPT.encode()], np.object_), "BYTES")], parameters={name: 5})


def test_bad_input_is_answered_on_a_stream(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="num_inference_steps is 0"):
        client.stream(prompt=PROMPT, num_inference_steps=0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"seed": 1}', "prompt is missing"),
        ("{}", "prompt is missing"),
        ('{"prompt": "x", "num_inference_steps": 0}', "num_inference_steps is 0.*from 1 to 500"),
        ('{"prompt": "x", "num_inference_steps": 1000000000}', "num_inference_steps is 1000000000"),
        ('{"prompt": ["a", "b"]}', "prompt has 2 values"),
        ('{"prompt": "x", "guidance_scale": NaN}', "guidance_scale is nan"),
        ('{"prompt": "x", "seed": -5}', "seed is -5"),
        ('{"prompt": "x", "sampler": "nope"}', "sampler is 'nope'"),
        ('{"prompt": "x", "sed": 1}', "did you mean 'seed'"),
        ('{"prompt": "x", "width": 999}', "128x128, 192x192"),
        (json.dumps({"prompt": "x" * 1_000_000}), "prompt has 1000000 bytes"),
    ],
    ids=lambda value: value[:40],
)
def test_bad_input_is_answered_over_http(server: TritonServer, body: str, message: str) -> None:
    status, answer = post(server, f"{FACE}/generate", body.encode())
    assert status == 400
    assert re.search(message, answer["error"])


def test_bad_requests_do_not_disturb_others(server: TritonServer) -> None:
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            post(server, f"{FACE}/generate", b'{"prompt": "x", "num_inference_steps": 0}')

    with Client(server.grpc_url) as one:
        before = one.generate(**QUICK)
        thread = threading.Thread(target=disturb)
        thread.start()
        during = one.generate(**QUICK)
        stop.set()
        thread.join()
    assert before.images == during.images


def test_cancelled_stream_stops_working(server: TritonServer, client: Client) -> None:
    class Enough(Exception):
        pass

    def leave(event: Mapping[str, Any]) -> None:
        if event["step"] == 2:
            raise Enough

    with pytest.raises(Enough):
        client.stream(leave, prompt=PROMPT, num_inference_steps=500)
    started = time.monotonic()
    result = client.generate(**QUICK)
    assert time.monotonic() - started < 10
    timing = result.metadata["timing"]
    assert timing["unet_calls"] > 3, "the cancelled request still takes part in the calls"


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def readme_blocks(language: str, containing: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    return [block for block in blocks if containing in block]


def test_readme_curl_commands_work(server: TritonServer, tmp_path: Path) -> None:
    blocks = readme_blocks("sh", "curl ")
    assert blocks
    for block in blocks:
        script = block.replace("localhost:8000", server.http_url.removeprefix("http://"))
        environment = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, check=True)
    drawn = sorted(tmp_path.glob("*.png"))
    assert drawn
    for path in drawn:
        assert picture_size(path) == (128, 128)


def test_readme_python_client_works(server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = readme_blocks("python", "tritonclient")
    assert blocks
    for block in blocks:
        exec(block.replace("localhost:8001", server.grpc_url), {})
    assert picture_size(tmp_path / "circle.png") == (128, 128)


def test_generate_command_writes_pictures(server: TritonServer, tmp_path: Path) -> None:
    from server.__main__ import main

    out = tmp_path / "x.png"
    arguments = ["generate", "--url", server.grpc_url, "--prompt", PROMPT, "--seed", "3", "--out", str(out)]
    assert main([*arguments, "--num-inference-steps", "2", "--num-images", "2"]) == 0
    assert [picture_size(tmp_path / name) for name in ("x.png", "x-1.png")] == [(128, 128)] * 2


def test_generate_command_says_what_is_wrong(
    server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from server.__main__ import main

    arguments = ["generate", "--prompt", "x", "--out", str(tmp_path / "x.png")]
    assert main([*arguments, "--url", server.grpc_url, "--num-inference-steps", "0"]) == 1
    assert "num_inference_steps is 0" in capsys.readouterr().err
    assert main([*arguments, "--url", "127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_base64_answer_holds_the_picture(server: TritonServer, client: Client) -> None:
    status, answer = post(server, f"{FACE}/generate", json.dumps({**QUICK, "encoding": "base64"}).encode())
    assert status == 200
    assert base64.b64decode(answer["images"]) == client.generate(**QUICK).images[0]
    assert json.loads(answer["metadata"])["request"]["seed"] == 3


def test_generate_stream_sends_progress_and_previews_over_http(server: TritonServer) -> None:
    body = json.dumps({**QUICK, "encoding": "base64", "progress_interval": 2, "preview_interval": 2}).encode()
    request = urllib.request.Request(f"{server.http_url}/v2/models/{STREAM}/generate_stream", body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [json.loads(line[5:]) for line in answer.read().decode().splitlines() if line.startswith("data:")]
    told = [json.loads(event["progress"])["step"] for event in events if "progress" in event and "preview" not in event]
    assert told == [2, 4]
    previews = [base64.b64decode(event["preview"], validate=True) for event in events if "preview" in event]
    assert [Image.open(io.BytesIO(preview)).format for preview in previews] == ["JPEG"]
    assert "images" in events[-1]


def test_samplers_and_schedules_can_be_read_over_http(server: TritonServer) -> None:
    with urllib.request.urlopen(f"{server.http_url}/v2/models/{FACE}/config", timeout=60) as answer:
        parameters = json.loads(answer.read())["parameters"]
    samplers = {sampler["name"]: sampler for sampler in json.loads(parameters["samplers"]["string_value"])}
    assert samplers["euler_ancestral"]["aliases"] == ["Euler a"]
    assert samplers["lms"]["options"] == ["solver_order"]
    assert "karras" in json.loads(parameters["schedules"]["string_value"])


def test_listed_levels_composed_and_long_prompts_are_drawn(client: Client) -> None:
    listed = client.generate(**{**QUICK, "sigmas": [10.0, 3.0, 1.0, 0.2]})
    assert listed.metadata["request"]["num_inference_steps"] == 4
    prompt = f"(a red circle:1.2) on a blue background AND a star :0.3, {'very ' * 100}small"
    long = client.generate(**{**QUICK, "prompt": prompt, "prompt_syntax": "a1111", "sampler": "DPM++ 2M Karras"})
    assert (long.metadata["request"]["sampler"], long.metadata["request"]["schedule"]) == ("dpmpp_2m", "karras")
    chunks = [text["chunks"] for text in long.metadata["tokens"]]
    assert sorted(chunks)[:2] == [1, 1]
    assert max(chunks) > 1
    assert long.metadata["timing"]["unet_rows"] == 3 * 4
    assert all(text["dropped"] == 0 for text in long.metadata["tokens"])


def test_a_prompt_with_more_parts_than_a_call_has_rows_is_answered(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"parts for 21 rows .* calls have 16: join fewer parts"):
        client.generate(**{**QUICK, "prompt": " AND ".join("abcdefghijklmnopqrst"), "prompt_syntax": "a1111"})


def test_generate_repeats_a_picture(server: TritonServer, tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    options = ["--prompt", PROMPT, "--num-inference-steps", "4", "--sampler", "Euler a", "--subseed-strength", "0.4"]
    assert main(["generate", "--url", server.grpc_url, "--out", str(first), *options]) == 0
    assert main(["generate", "--url", server.grpc_url, "--out", str(again), "--from", str(first)]) == 0
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("placement", ["in_process", "triton"])
def test_server_stops_cleanly_and_answers_open_requests(
    embedded_export: Path, tmp_path: Path, placement: Placement
) -> None:
    """A Triton that stops refuses calls to other models, so only components in process can finish a picture then."""
    config = ServerConfig(model=embedded_export, provider="cpu", text_encoder=placement, vae_decoder=placement)
    before = set(os.listdir("/dev/shm"))
    server = TritonServer(config, log=tmp_path / "log")
    server.start()
    answers: list[Any] = []

    def ask() -> None:
        with Client(server.grpc_url) as one:
            try:
                answers.append(one.generate(**{**QUICK, "num_inference_steps": 30}))
            except ServerError as error:
                answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    server.stop()
    thread.join(30)
    assert server.exit_code() == 0
    assert len(answers) == 1
    assert placement == "triton" or not isinstance(answers[0], ServerError), answers[0]
    left = set(os.listdir("/dev/shm")) - before
    assert not [name for name in left if name.startswith(f"aquatint-{os.getpid()}-")]
