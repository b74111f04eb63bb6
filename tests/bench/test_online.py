"""Options that become loads, bad ends told in sentences, and one short load on a real server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import online
from bench.__main__ import main
from bench.serving import Address, accelerator_curve, mean_rows
from bench.traffic import loops
from bench.traffic.arrivals import Bursts, Ramp
from bench.traffic.echo import answered
from bench.traffic.mix import FACES, Asked
from bench.traffic.workload import read_workload
from tests.odd_servers import OddTriton, listener


def arguments(*texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    online.add_options(parser)
    return parser.parse_args(texts)


def test_options_become_a_mix_and_a_load() -> None:
    options = arguments("--steps", "4,20", "--face", "both", "--rate", "5", "--duration", "3", "--timeout-ms", "100")
    mix, (load,) = online.mix_of(options), online.loads_of(options)
    assert (mix.steps, mix.faces, mix.timeouts_ms) == ((4, 20), FACES, (100,))
    assert (load.arrivals, load.concurrency, load.count, load.seconds) == (Bursts(5.0), None, None, 3.0)
    (usual,) = online.loads_of(arguments())
    assert (usual.concurrency, usual.count) == (16, 200)


def test_several_values_are_a_sweep() -> None:
    assert [load.concurrency for load in online.loads_of(arguments("--concurrency", "1,2,8"))] == [1, 2, 8]
    loads = online.loads_of(arguments("--rate", "2,4.5", "--cv", "3"))
    assert [load.arrivals for load in loads] == [Bursts(2.0, 3.0), Bursts(4.5, 3.0)]
    assert [load.label for load in loads] == ["2/s cv 3", "4.5/s cv 3"]
    (ramp,) = online.loads_of(arguments("--ramp", "1:9:60"))
    assert (ramp.arrivals, ramp.count, ramp.seconds) == (Ramp(1, 9, 60), None, None)


def test_options_go_before_a_workload(tmp_path: Path) -> None:
    file = tmp_path / "load.yaml"
    file.write_text("steps: 9\nsize: 192\narrivals: {process: poisson, rate: [1, 2]}\nload: {duration: 7, limit: 3}")
    workload = read_workload(file)
    mix, loads = online.mix_of(arguments(), workload), online.loads_of(arguments(), workload)
    assert (mix.steps, mix.sizes, mix.guidance) == ((9,), (192,), (7.5,))
    assert [(load.arrivals, load.seconds, load.count, load.limit) for load in loads] == [
        (Bursts(1.0), 7.0, None, 3.0),
        (Bursts(2.0), 7.0, None, 3.0),
    ]
    options = arguments("--steps", "5", "--concurrency", "4", "--requests", "11")
    assert online.mix_of(options, workload).steps == (5,)
    (load,) = online.loads_of(options, workload)
    assert (load.arrivals, load.concurrency, load.count, load.seconds) == (None, 4, 11, None)


def test_usual_ports_say_the_others() -> None:
    assert Address.of("gpu-1:8001", None, None) == Address(
        "gpu-1:8001", "http://gpu-1:8002/metrics", "http://gpu-1:8000"
    )
    assert Address.of("gpu-1:9001", None, "http://gpu-1:9000") == Address("gpu-1:9001", None, "http://gpu-1:9000")


def test_rows_per_call_are_weighted_by_calls() -> None:
    alone = {"unet_rows": 40, "unet_calls": 20}
    shared = {"unet_rows": 40, "unet_calls": 10}
    assert mean_rows([alone, shared]) == pytest.approx(80 / 30)
    assert mean_rows([]) is None


def test_the_device_is_the_one_of_the_other_programs() -> None:
    (few, quick), (many, slow) = accelerator_curve("h100")
    assert (few, many) == (2, 16)
    assert [quick, slow] == pytest.approx([0.0115, 0.032], abs=1e-4)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["--cancel-share", "0.7", "--malformed-share", "0.4"], "give parts of 1"),
        (["--cancel-share", "nan"], "give parts of 1"),
        (["--clients", "-1"], "--clients is -1: give 0 or more"),
        (["--cancel-within", "-1"], "--cancel-within is -1.0"),
        (["--rate", "-1"], "--rate is -1.0: give a number above 0"),
        (["--rate", "0"], "--rate is 0.0: give a number above 0"),
        (["--rate", "2,nan"], "--rate is nan"),
        (["--rate", "2,2"], "the sweep has 2/s twice"),
        (["--concurrency", "0"], "--concurrency is 0"),
        (["--requests", "0"], "--requests is 0"),
        (["--ramp", "0:4:10"], "the first rate of arrivals is 0: give a number above 0"),
        (["--rate", "3", "--cv", "-1"], "--cv is -1.0"),
        (["--concurrency", "3", "--cv", "2"], "--cv is 2, which is of --rate: give both, or neither"),
        (["--rate", "3", "--speed", "2"], "--speed is 2, which is of --trace"),
        (["--trace", "none.csv"], "none.csv cannot be read as a trace"),
        (["--workload", "none.yaml"], "none.yaml cannot be read"),
        (["--url", "127.0.0.1:1", "--fake"], "give one of them"),
    ],
)
def test_bad_options_are_told_in_a_sentence(
    texts: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["online", *texts]) == 1
    assert message in capsys.readouterr().err


def test_no_server_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["online", "--url", "127.0.0.1:1", "--warm-up", "0"]) == 1
    assert "is the server running" in capsys.readouterr().err


def test_a_bad_workload_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "load.yaml"
    file.write_text("requests: {steps: 3}")
    assert main(["online", "--workload", str(file)]) == 1
    assert f"online: {file}: requests is no key of a workload; give seed, face" in capsys.readouterr().err


# Each is quick: a load that is not there to be measured.
FEW = ["--warm-up", "2", "--repeats", "1", "--requests", "40", "--size", "64", "--steps", "2"]


def ended(url: str, *options: str) -> int:
    return main(["online", "--url", url, *FEW, *options])


def test_another_grpc_service_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with OddTriton(ready=None) as server:
        assert ended(server.url) == 1
    assert "does not answer as a Triton" in capsys.readouterr().err


@pytest.mark.parametrize("face", ["unary", "stream"])
def test_a_triton_without_our_models_is_told(face: str, capsys: pytest.CaptureFixture[str]) -> None:
    with OddTriton(ready=False) as server:
        assert ended(server.url, "--face", face) == 1
    name = "stable_diffusion" if face == "unary" else "stable_diffusion_stream"
    assert f"has no model {name} that is ready" in capsys.readouterr().err


@pytest.mark.parametrize("says", [b"220 welcome\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"])
def test_something_else_at_the_address_is_told(says: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with listener(says) as url:
        assert ended(url) == 1
        told = capsys.readouterr().err
        assert told.startswith("online: ")
        assert "Traceback" not in told
        assert ended("127.0.0.1:1", "--http-url", url, "--face", "http") == 1
    told = capsys.readouterr().err
    assert "does not answer" in told or "is the server running" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("metadata", [b"no JSON", b"[]", b"{}", b'{"request": 3}'])
@pytest.mark.parametrize("face", ["unary", "stream"])
def test_metadata_that_is_garbage_is_told(metadata: bytes, face: str, capsys: pytest.CaptureFixture[str]) -> None:
    def garbled(request: object) -> object:
        answer = answered(request)
        answer.raw_output_contents[1] = len(metadata).to_bytes(4, "little") + metadata
        return answer

    with OddTriton(garbled) as server:
        assert ended(server.url, "--face", face) == 1
    told = capsys.readouterr().err
    assert "online: a request alone on the server ended as" in told
    assert "metadata" in told


def test_an_answer_of_other_outputs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def other(request: object) -> object:
        answer = answered(request)
        answer.outputs[0].name, answer.outputs[1].name = "colour", "shape"
        return answer

    with OddTriton(other) as server:
        assert ended(server.url) == 1
    assert "is not what our models send" in capsys.readouterr().err


@pytest.mark.parametrize("load", [["--rate", "200"], ["--concurrency", "2,4"]])
def test_a_server_that_dies_leaves_what_there_was(
    load: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "PATIENCE_SECONDS", 0.3)
    seen = 0

    def mortal(request: object) -> object:
        nonlocal seen
        seen += 1
        if seen == 60:
            server.die()
        return answered(request)

    result = tmp_path / "online.json"
    with OddTriton(mortal) as server:
        # The last point is never reached.
        assert ended(server.url, *load, "--requests", "5000", "--json", str(result)) == 1
    found = json.loads(result.read_text())
    assert found["partial"] is True
    (point,) = found["points"]
    assert 20 < point["outcomes"]["ok"] < 60
    assert point["outcomes"]["disconnected"] > 0
    assert point["stopped"] in found["failures"][0]
    assert "the server has not answered for" in capsys.readouterr().err
    assert found["measures"][f"latency p50 at {point['load']}"]["value"] > 0


def test_a_server_that_may_not_be_read_is_measured_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "online.json"
    with OddTriton() as server:
        options = ["--metrics-url", "http://127.0.0.1:1/metrics", "--concurrency", "1,2", "--json", str(result)]
        assert ended(server.url, *options) == 0
    assert "the server's metrics were not read" in capsys.readouterr().err
    found = json.loads(result.read_text())
    # It is not one of ours, and tells no more.
    assert found["environment"]["server"] == {"name": "odd"}
    assert [point["outcomes"] for point in found["points"]] == [{"ok": 40}, {"ok": 40}]
    assert "coordinated omission" in found["points"][0]["latency_counts_from"]
    assert "server_counted" not in found["points"][0]
    assert {plot["title"] for plot in found["plots"]} >= {"Latency over throughput", "Goodput over load"}


def test_a_point_that_cannot_be_measured_leaves_those_before(tmp_path: Path) -> None:
    result = tmp_path / "online.json"
    options = ["--rate", "100,0.0001", "--duration", "0.3", "--json", str(result)]
    with OddTriton() as server:
        assert main(["online", "--url", server.url, *FEW[:4], *FEW[6:], *options]) == 1
    found = json.loads(result.read_text())
    assert found["partial"] is True
    assert [point["load"] for point in found["points"]] == ["100/s"]
    assert found["failures"] == ["0.0001/s: no request comes in 0.3 s at 0.0001/s: give a longer --duration"]


def test_answers_from_a_cache_are_told(tmp_path: Path) -> None:
    def kept(request: object) -> object:
        answer = answered(request)
        metadata = {**json.loads(answer.raw_output_contents[1][4:]), "cached": True}
        text = json.dumps(metadata).encode()
        answer.raw_output_contents[1] = len(text).to_bytes(4, "little") + text
        return answer

    result = tmp_path / "online.json"
    with OddTriton(kept) as server:
        assert ended(server.url, "--json", str(result)) == 1
    found = json.loads(result.read_text())
    assert (found["answered_from_cache"], found["partial"]) == (40, False)
    assert "40 answers came from the server's response cache" in found["failures"][0]


def test_a_load_that_is_sent_again_asks_for_other_pictures(tmp_path: Path) -> None:
    """Or a server would have kept its answers; all else is the same, and no size is sent that it might not have."""
    seen: list[dict[str, bytes]] = []

    def noted(request: Any) -> object:
        seen.append({one.name: data for one, data in zip(request.inputs, request.raw_input_contents, strict=True)})
        return answered(request)

    few = ["--warm-up", "0", "--repeats", "1", "--requests", "5", "--concurrency", "1"]
    for _ in range(2):
        with OddTriton(noted) as server:
            assert main(["online", "--url", server.url, *few]) == 0
    first, again = (sorted(part, key=lambda one: one["request_id"])[-5:] for part in (seen[:7], seen[7:]))
    assert not {one["seed"] for one in first} & {one["seed"] for one in again}
    assert [one["prompt"] for one in first] == [one["prompt"] for one in again]
    assert not any("height" in one or "width" in one for one in seen)


def test_several_processes_send_each_request_once(tmp_path: Path) -> None:
    result = tmp_path / "online.json"
    with OddTriton() as server:
        options = ["--rate", "100", "--processes", "2", "--json", str(result), "--slo-ms", "60000"]
        assert ended(server.url, *options) == 0
    found = json.loads(result.read_text())
    assert (found["outcomes"], found["unaccounted"]) == ({"ok": 40}, [])
    assert found["latency_counts_from"].startswith("intended sending")
    assert found["measures"]["share in 60000 ms at 100/s"]["value"] == 1


@pytest.mark.triton
def test_a_short_load(fake_export: Path, tmp_path: Path) -> None:
    result, workload = tmp_path / "online.json", tmp_path / "load.yaml"
    workload.write_text(
        """
        face: [unary, stream, http]
        steps: [2, 8]
        size: 64
        task: [txt2img, {name: inpainting}]
        clients: 3
        preview_interval: 2
        cancel: {share: 0.2, within: 0.1}
        malformed: 0.1
        arrivals: {process: poisson, rate: 40}
        load: {requests: 90, repeats: 1, warm_up: 4}
        """
    )
    model = ["--model", str(fake_export), "--log", str(tmp_path / "log"), "--json", str(result)]
    assert main(["online", "--fake", "--workload", str(workload), "--scrape-seconds", "0.5", *model]) == 0
    found = json.loads(result.read_text())
    assert found["unaccounted"] == []
    assert sum(found["outcomes"].values()) == 90
    assert found["outcomes"]["ok"] > 30
    assert found["outcomes"]["invalid"] == sum(one.malformed for one in _asked(workload))
    assert set(found["alone_ms_by_steps"]) == {"2", "8"}
    assert set(found["latency_ms_by_task"]) == {"txt2img", "inpainting"}
    assert found["mean_rows_per_unet_call"] >= 2
    assert found["first_preview_ms"]["count"] > 5
    assert found["server_counted"]['requests_total{outcome="ok"}'] >= found["outcomes"]["ok"]
    assert any(plot["title"].startswith("Rows per UNet call, by the server") for plot in found["plots"])
    server = found["environment"]["server"]
    assert (server["name"], server["provider"], server["max_rows"]) == ("triton", "fake", 16)
    assert server["checkpoint"] == fake_export.name
    assert not any("/" in str(value) for value in server.values())


def _asked(workload: Path) -> list[Asked]:
    return list(online.mix_of(arguments(), read_workload(workload)).requests(90))


@pytest.mark.triton
@pytest.mark.slow
def test_a_thousand_streams_at_once(fake_export: Path, tmp_path: Path) -> None:
    result = tmp_path / "online.json"
    load = ["--face", "stream", "--concurrency", "1000", "--requests", "2000", "--repeats", "1", "--steps", "4"]
    model = ["--size", "64", "--model", str(fake_export), "--log", str(tmp_path / "log"), "--json", str(result)]
    assert main(["online", "--fake", "--queue-limit", "2048", *load, *model]) == 0
    found = json.loads(result.read_text())
    assert found["outcomes"] == {"ok": 2000}
    assert found["client"]["open_at_most"] == 1000
    assert found["client"]["peak_mib"] < 1024


@pytest.mark.triton
@pytest.mark.slow
def test_a_flood_of_refusals_breaks_nothing(fake_export: Path, tmp_path: Path) -> None:
    """Answers that come at once are the hardest for the threads of the unary model."""
    result = tmp_path / "online.json"
    load = ["--fake", "--requests", "6000", "--concurrency", "32", "--repeats", "1", "--warm-up", "0"]
    model = ["--size", "64", "--model", str(fake_export), "--log", str(tmp_path / "log"), "--json", str(result)]
    assert main(["online", *load, "--malformed-share", "1", *model]) == 0
    assert json.loads(result.read_text())["outcomes"] == {"invalid": 6000}
