"""A server that fails is started again; one that is told to end answers what is open first."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.client import Client
from server.config import ServerConfig
from server.errors import ServerError, StartupError
from server.launch import DRAIN_FILE, DRAIN_SECONDS, DRAINED_FILE, Condition, TritonServer, never
from server.process_group import Process, kill_group, members, mortal
from server.repository import FACE, STREAM, deployed_models
from server.supervisor import HEARTBEAT, HangWatch, RestartPolicy, Supervisor, read_heartbeat

ROOT = Path(__file__).parent.parent.parent


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition was met."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - start


@contextlib.contextmanager
def metrics_server(*texts: str) -> Iterator[str]:
    """The URL of a server that gives these texts, one per request, and then 404."""
    left = list(texts)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if left else 404)
            self.end_headers()
            self.wfile.write(left.pop(0).encode() if left else b"")

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()


class ScriptedServer(TritonServer):
    """Ready at once, and fails as it is told: one entry per start, None for a start that does not fail.

    An entry that begins with "start" fails the start itself.
    """

    def __init__(self, *script: str | None) -> None:
        super().__init__(ServerConfig(model=Path("nowhere")))
        self.script = list(script)
        self.calls: list[str] = []
        self.now: str | None = None

    def start(self, cancelled: Condition = never) -> None:
        self.restart(cancelled)

    def restart(self, cancelled: Condition = never) -> None:
        self.calls.append("start")
        self.now = self.script.pop(0)
        if self.now and self.now.startswith("start"):
            raise StartupError(self.now)

    def failure(self) -> str | None:
        return self.now

    def kill(self) -> None:
        self.calls.append("kill")

    def stop(self, grace_seconds: float = 0.0, hurry: Condition = never) -> None:
        self.calls.append(f"stop {grace_seconds:g}")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """A clock that goes half a second further whenever it is looked at, and sleeps that take no time."""
    monkeypatch.setattr("server.supervisor.LOOK_SECONDS", 0.0)
    return itertools.count(0.0, 0.5).__next__


def delays(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [int(found[1]) for text in caplog.messages if (found := re.search(r"again in (\d+) s", text))]


def test_a_failed_server_is_killed_and_started_again(ticking: Callable[[], float]) -> None:
    server = ScriptedServer("the process of vae_decoder has gone", None)
    supervisor = Supervisor(server, grace_seconds=7, hang_seconds=0, clock=ticking)
    ready: list[int] = []

    def on_ready() -> None:
        ready.append(supervisor.restarts)
        if supervisor.restarts:
            supervisor.request_stop()

    assert supervisor.run(on_ready) == 0
    assert ready == [0, 1]
    assert server.calls == ["start", "kill", "start", "stop 7", "stop 0"]


def test_repeated_failures_wait_longer_and_then_give_up(
    ticking: Callable[[], float], caplog: pytest.LogCaptureFixture
) -> None:
    server = ScriptedServer("a", "b", "start c", "start d", "e", "f")
    supervisor = Supervisor(server, hang_seconds=0, clock=ticking)
    with caplog.at_level(logging.WARNING), pytest.raises(StartupError, match=r"again 5 times within 10 minutes .*: f;"):
        supervisor.run()
    assert supervisor.restarts == 5
    assert delays(caplog) == [0, 1, 2, 4, 8]
    assert server.calls[-2:] == ["kill", "stop 0"]


def test_failures_far_apart_are_forgiven(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("server.supervisor.LOOK_SECONDS", 0.0)
    server = ScriptedServer(*"abcdefg", "start h", *"ijklm")
    supervisor = Supervisor(server, hang_seconds=0, clock=itertools.count(0.0, 400.0).__next__)
    with caplog.at_level(logging.WARNING), pytest.raises(IndexError):
        supervisor.run()
    assert set(delays(caplog)) == {0, 1, 2}
    assert supervisor.restarts == 13


def test_the_wait_has_an_upper_bound() -> None:
    policy = RestartPolicy(limit=100)
    assert [policy.delay(earlier) for earlier in (0, 1, 2, 3, 6, 50)] == [0, 1, 2, 4, 30, 30]
    assert policy.delay(100) is None


def test_a_first_start_that_fails_is_not_repeated(ticking: Callable[[], float]) -> None:
    server = ScriptedServer("start of a model that does not load")
    with pytest.raises(StartupError, match="does not load"):
        Supervisor(server, clock=ticking).run()
    assert server.calls == ["start", "stop 0"]


def test_a_stop_ends_the_wait_for_a_restart(ticking: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> None:
    server = ScriptedServer("a", "b", None)
    supervisor = Supervisor(server, hang_seconds=0, clock=ticking)

    def sleep(seconds: float) -> None:
        if supervisor.restarts == 2:
            supervisor.request_stop()

    monkeypatch.setattr("server.supervisor.time.sleep", sleep)
    assert supervisor.run() == 0
    assert server.calls == ["start", "kill", "start", "kill", f"stop {DRAIN_SECONDS:g}", "stop 0"]


def test_the_hang_watch_tells_a_loop_that_stands_still() -> None:
    now, value = [0.0], [5.0]
    watch = HangWatch(lambda: value[0], limit=60.0, clock=lambda: now[0])
    for second in range(100):
        now[0], value[0] = float(second), 5.0 + second
        assert watch.hang() is None
    reason = None
    while reason is None:
        now[0] += 1
        reason = watch.hang()
    assert 60 <= now[0] - 99 <= 65
    assert reason == "the denoising loop has not turned for 62 s"


def test_a_server_without_heartbeat_or_a_suspended_machine_does_not_hang() -> None:
    now: list[float] = [0.0]
    values: list[float | None] = [None]
    watch = HangWatch(lambda: values[0], limit=60.0, clock=lambda: now[0])
    for _ in range(100):
        now[0] += 2
        assert watch.hang() is None
    values[0] = 1.0
    for _ in range(2):
        now[0] += 10_000
        assert watch.hang() is None


def test_a_heartbeat_that_is_lost_is_a_hang() -> None:
    now: list[float] = [2.0]
    values: list[float | None] = [1.0]
    watch = HangWatch(lambda: values[0], limit=10.0, clock=lambda: now[0])
    now[0] += 2
    assert watch.hang() is None
    values[0] = None
    reasons = []
    for _ in range(6):
        now[0] += 2
        reasons.append(watch.hang())
    assert [reason is None for reason in reasons] == [True] * 5 + [False]


def test_a_hang_is_a_failure(ticking: Callable[[], float], caplog: pytest.LogCaptureFixture) -> None:
    server = ScriptedServer(None, None)
    supervisor = Supervisor(server, heartbeat=lambda: 1.0, hang_seconds=10, clock=ticking)

    def on_ready() -> None:
        if supervisor.restarts:
            supervisor.request_stop()

    with caplog.at_level(logging.WARNING):
        assert supervisor.run(on_ready) == 0
    assert server.calls[:3] == ["start", "kill", "start"]
    assert caplog.messages[0].startswith("the denoising loop has not turned for")


def test_the_heartbeat_is_read_from_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    none, one = f"# TYPE {HEARTBEAT} gauge\nnv_other 3\n", f'{HEARTBEAT}{{model="a"}} 1795333003.764812\n'
    with metrics_server(none, one, "damaged") as url:
        assert [read_heartbeat(url) for _ in range(4)] == [None, 1795333003.764812, None, None]
    assert read_heartbeat(url) is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_group_is_found_and_killed_with_all_it_started() -> None:
    script = "sleep 600 & sleep 600 & wait"
    leader = subprocess.Popen(mortal(["sh", "-c", script]), process_group=0)
    wait_until(lambda: len(members(leader.pid)) == 3, 5)
    found = members(leader.pid)
    assert sorted(process.command[0] for process in found) == ["sh", "sleep", "sleep"]
    assert all(process.is_alive() for process in found)
    assert not Process(found[0].pid, found[0].start + 1, ()).is_alive(), "another process with the same id"
    assert kill_group(leader, 5.0) == []
    assert not any(process.is_alive() for process in found)
    assert leader.returncode == -signal.SIGKILL
    assert kill_group(leader, 5.0) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_mortal_process_ends_with_who_started_it() -> None:
    starter = (
        "import subprocess, sys; from server.process_group import mortal; "
        "child = subprocess.Popen(mortal(['sleep', '600'])); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    command = Path(f"/proc/{child}/cmdline")
    wait_until(lambda: command.read_bytes().startswith(b"sleep"), 5)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not command.exists() or not command.read_bytes(), 5)


class Supervised:
    """A supervisor in a thread of its own, and what a test wants to know of its server."""

    def __init__(self, config: ServerConfig, log: Path, **options: Any) -> None:
        self.server = TritonServer(config, log=log)
        self.supervisor = Supervisor(self.server, **options)
        self.starts = 0
        self._pool = ThreadPoolExecutor(1)
        self.ended: Future[int] = self._pool.submit(self.supervisor.run, self._on_ready)

    def _on_ready(self) -> None:
        self.starts += 1

    def wait_for_start(self, number: int) -> None:
        wait_until(lambda: self.starts == number or self.ended.done(), 60)
        if self.starts != number:
            self.ended.result()

    def stub(self, model: str) -> int:
        return next(p.pid for p in members(self.server.pid) if f"/{model}/1/" in " ".join(p.command))

    def regions(self, prefix: str) -> list[str]:
        return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]

    def close(self) -> None:
        self.supervisor.request_stop()
        self.supervisor.request_stop()
        with contextlib.suppress(StartupError):
            self.ended.result(60)
        self._pool.shutdown()


@pytest.fixture
def supervised(fake_export: Path, tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    made: list[Supervised] = []

    def start(**options: Any) -> Supervised:
        config = ServerConfig(model=fake_export, provider="fake", max_rows=2)
        made.append(Supervised(config, tmp_path / "triton.log", **options))
        made[-1].wait_for_start(1)
        return made[-1]

    yield start
    for one in made:
        one.close()


def ask(server: TritonServer, way: str) -> object:
    """An answer, or how the call failed."""
    try:
        if way == "http":
            body = b'{"prompt": "a", "encoding": "base64"}'
            request = urllib.request.Request(f"{server.http_url}/v2/models/{FACE}/generate", body)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        with Client(server.grpc_url) as client:
            return client.generate(prompt="a") if way == "unary" else client.stream(prompt="a")
    except (ServerError, OSError, http.client.HTTPException) as error:
        return error


@pytest.mark.triton
def test_a_killed_stub_ends_every_call_and_the_server_comes_back(supervised: Callable[..., Supervised]) -> None:
    """While the stream stands still requests come in, so that they are surely open when it dies."""
    one = supervised()
    server, prefix, stub = one.server, one.server.prefix, one.stub(STREAM)
    assert len(one.regions(prefix)) == len(deployed_models(server.config))
    os.kill(stub, signal.SIGSTOP)
    with ThreadPoolExecutor(9) as pool:
        calls = [pool.submit(ask, server, way) for way in ("unary", "stream", "http") * 3]
        time.sleep(0.5)
        assert not any(call.done() for call in calls)
        os.kill(stub, signal.SIGKILL)
        wait_until(lambda: not server.is_ready(), 2)
        wait_until(lambda: all(call.done() for call in calls), 3)
    assert all(isinstance(call.result(), Exception) for call in calls)
    one.wait_for_start(2)
    assert server.is_ready()
    assert one.supervisor.restarts == 1
    assert one.regions(prefix) == []
    for way in ("unary", "stream", "http"):
        assert not isinstance(ask(server, way), Exception)


# urllib leaves a socket to the garbage collector when its server dies at a bad moment.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.triton
def test_a_killed_tritonserver_comes_back_under_load_until_it_is_killed_too_often(
    supervised: Callable[..., Supervised],
) -> None:
    one = supervised(policy=RestartPolicy(limit=1))
    server, prefix = one.server, one.server.prefix
    finished = threading.Event()
    answers: list[object] = []

    def load(way: str) -> None:
        while not finished.is_set():
            answers.append(ask(server, way))

    with ThreadPoolExecutor(3) as pool, contextlib.ExitStack() as stack:
        stack.callback(finished.set)
        for way in ("unary", "stream", "http"):
            pool.submit(load, way)
        wait_until(lambda: len(answers) > 20, 20)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_ready(), 2)
        one.wait_for_start(2)
        # gRPC tries a refused address again after a second or more.
        wait_until(lambda: not any(isinstance(answer, Exception) for answer in answers[-12:]), 20)
    assert one.regions(prefix) == []
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(StartupError, match=r"again 1 times .* tritonserver ended by signal 9; find the cause"):
        one.ended.result(20)
    assert members(server.pid) == []
    assert one.regions(f"aquatint-{os.getpid()}-") == []


@pytest.mark.triton
def test_a_server_that_is_told_to_end_answers_what_is_open_first(supervised: Callable[..., Supervised]) -> None:
    one = supervised(grace_seconds=60.0)
    server, folder, stub = one.server, one.server.folder, one.stub(STREAM)
    long: dict[str, Any] = {"prompt": "a", "num_inference_steps": 500, "num_images": 8}
    running = threading.Event()

    def unary() -> object:
        with Client(server.grpc_url) as client:
            return client.generate(**long)

    def stream() -> object:
        with Client(server.grpc_url) as client:
            return client.stream(lambda *progress: running.set(), progress_interval=10, **long)

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(unary)]
        time.sleep(0.3)
        calls.append(pool.submit(stream))
        assert running.wait(20)
        # So that it is not too quick for this test.
        os.kill(stub, signal.SIGSTOP)
        one.supervisor.request_stop()
        wait_until((folder / DRAIN_FILE).exists, 2)
        os.kill(stub, signal.SIGCONT)
        assert not calls[1].done()
        for call in calls:
            call.result(30)
    # The stream may have written it already, and then the folder may be gone.
    with contextlib.suppress(FileNotFoundError):
        (folder / DRAINED_FILE).touch()
    assert one.ended.result(20) == 0
    assert server.exit_code() == 0
    assert not folder.exists()
    assert one.regions(server.prefix) == []


@pytest.mark.triton
def test_a_server_that_is_told_to_end_while_it_starts_is_gone_at_once(fake_export: Path, tmp_path: Path) -> None:
    server = TritonServer(ServerConfig(model=fake_export, provider="fake"), log=tmp_path / "triton.log")
    server.start(cancelled=lambda: bool(members(server.pid)[1:]))
    begin = time.monotonic()
    server.stop(grace_seconds=60.0)
    assert time.monotonic() - begin < 5
    assert members(server.pid) == []
    assert [name for name in os.listdir("/dev/shm") if name.startswith(server.prefix)] == []


@contextlib.contextmanager
def launched(model: Path, temporary: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`python -m server launch` when it is ready, and the process group of its tritonserver."""
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    command = [sys.executable, "-m", "server", "launch", "--model", str(model), "--provider", "fake", *ports, *options]
    # A launcher that is killed leaves its temporary folder behind.
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as launcher:
        try:
            assert launcher.stdout is not None
            ready = f"ready: {model.name} (text_to_image) at 64x64"
            assert next(line for line in launcher.stdout if line.startswith(ready))
            yield launcher, int(Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text())
        finally:
            launcher.kill()


def processes(model: Path) -> int:
    """Of a server: tritonserver's own, and one for each model."""
    return 1 + len(deployed_models(ServerConfig(model=model, provider="fake")))


@pytest.mark.triton
def test_nothing_outlives_a_killed_launcher(fake_export: Path, tmp_path: Path) -> None:
    with launched(fake_export, tmp_path) as (launcher, group):
        assert len(members(group)) == processes(fake_export)
        launcher.kill()
        wait_until(lambda: not members(group), 40)
        assert [name for name in os.listdir("/dev/shm") if name.startswith(f"aquatint-{launcher.pid}-")] == []


@pytest.mark.triton
def test_a_second_signal_ends_at_once(fake_export: Path, tmp_path: Path) -> None:
    """The stream stands still, so the first one waits for it."""
    with launched(fake_export, tmp_path, "--grace-seconds=50") as (launcher, group):
        stub = next(process.pid for process in members(group) if f"/{STREAM}/1/" in " ".join(process.command))
        os.kill(stub, signal.SIGSTOP)
        launcher.send_signal(signal.SIGINT)
        time.sleep(1)
        assert launcher.poll() is None
        assert len(members(group)) == processes(fake_export)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(10) == 1
        assert members(group) == []
        assert [name for name in os.listdir("/dev/shm") if name.startswith(f"aquatint-{launcher.pid}-")] == []
