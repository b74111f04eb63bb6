"""The search finds what is known, and the program reports what others rely on."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.simulated.accelerator import ACCELERATORS, DeviceCurve
from bench.simulated.dry_run import all_searched, summary
from bench.simulated.fairness import fairness
from bench.simulated.load import Load
from bench.simulated.simulation import GRID, Goodput, Ledger, Settings, goodputs, simulate
from bench.traffic import live_goodput
from bench.traffic.attempt import Attempted, attempt
from bench.traffic.echo import answered
from server.errors import ServerError
from tests.odd_servers import OddTriton

# So slow that the host's own time does not matter.
SLOW = DeviceCurve(fixed_seconds=10.0, row_seconds=1.0)
STEPS = 2


def test_goodput_of_even_arrivals_is_the_rate_of_service() -> None:
    settings = Settings(SLOW, requests=500)
    count = settings.warm_up + settings.requests
    load = Load(tuple(float(i) for i in range(count)), (STEPS,) * count, ("euler",) * count)
    found = goodputs("serial", settings, load, peak=0.2, near={5.0: 0.05, 3.0: 0.05})
    for k in (5.0, 3.0):
        assert found[k].rate == pytest.approx(1 / SLOW.alone(STEPS), rel=GRID - 1)


def test_goodput_of_poisson_arrivals_is_that_of_a_queue_with_constant_service() -> None:
    """M/D/1 (Crommelin, 1932): a wait of at most two services has probability (1 - r) (exp(2 r) - r exp(r))."""
    settings = Settings(SLOW, requests=3000)
    load = settings.load((STEPS,), seed=0)
    found = goodputs("serial", settings, load, peak=0.1, near={3.0: 0.02})[3.0]
    use = found.rate * SLOW.alone(STEPS)
    waits_little = (1 - use) * (math.exp(2 * use) - use * math.exp(use))
    assert waits_little == pytest.approx(0.95, abs=0.02)
    assert found.run is not None
    assert found.run.rows_per_call == 2
    assert found.run.idle_share == pytest.approx(1 - use, abs=0.05)


def test_goodput_is_zero_where_nothing_is_in_time() -> None:
    settings = Settings(SLOW, requests=20)
    found = goodputs("serial", settings, settings.load((STEPS,), seed=0), peak=0.1, near={0.5: 0.05})
    assert found == {0.5: Goodput(0.0, None)}


def test_a_hopeless_run_is_given_up() -> None:
    settings = Settings(SLOW, requests=200)
    load = settings.load((STEPS,), seed=0)
    run = simulate("serial", settings, load, rate=1.0, hopeless=3.0)
    assert math.inf in run.stretches
    assert run.attainment(3.0) < 0.95
    assert math.inf not in simulate("serial", settings, load, rate=1.0).stretches


def test_a_ledger_refuses_a_second_end() -> None:
    job = Load.drawn((STEPS,), 1, seed=0).jobs(1.0)[0]
    ledger = Ledger(SLOW)
    ledger.finished(job, job.work.noise.normal((4, 2, 2)), 1.0)
    with pytest.raises(ServerError, match="twice"):
        ledger.finished(job, job.work.noise.normal((4, 2, 2)), 2.0)


def test_a_ratio_to_nothing_is_null() -> None:
    found = {
        batcher: {k: [Goodput(rate, None), Goodput(rate, None)] for k in (3.0, 5.0)}
        for batcher, rate in {"in_flight": 4.0, "static": 2.0, "serial": 0.0}.items()
    }
    figures = summary("mixed", found, Settings(ACCELERATORS["h100"]))
    assert figures["ratio_vs_static"] == 2.0
    assert figures["ratio_vs_serial"] is None
    assert figures["k"]["5"]["ratio_vs_serial_low_high"] is None
    assert figures["k"]["5"]["serial"]["goodput"] == 0.0


def test_searches_may_run_in_several_processes() -> None:
    found = all_searched(("uniform",), Settings(SLOW, requests=20), seeds=1, processes=2)
    assert list(found["uniform"]) == ["in_flight", "static", "serial"]
    assert all(len(goodput) == 1 for limits in found["uniform"].values() for goodput in limits.values())


def test_a_short_job_is_held_up_by_long_ones() -> None:
    found = fairness(Settings(ACCELERATORS["h100"], max_rows=4), short_jobs=3)
    assert {"full", "queued"} < set(found)
    for figures in (found["full"], found["queued"]):
        assert 1 <= figures["median"] <= figures["worst"]
        assert figures["idle_share"] < 0.5


def test_goodput_reports_what_others_rely_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "goodput.json"
    options = ["--dry-run", "--requests", "20", "--seeds", "1", "--processes", "1", "--max-rows", "4"]
    assert main(["goodput", *options, "--json", str(kept)]) == 0
    result = json.loads(kept.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["mixed"] == result["mixed"]
    for workload in ("mixed", "uniform"):
        figures = result[workload]
        quoted = figures["k"][f"{figures['ratios_at_k']:g}"]
        for baseline in ("serial", "static"):
            assert figures[f"ratio_vs_{baseline}"] == quoted[f"ratio_vs_{baseline}"]
        for batcher in ("in_flight", "static", "serial"):
            assert 0 <= quoted[batcher]["share_of_peak"] <= 1
        assert set(figures["k"]) == {"3", "5"}
        assert result["rows_per_call"][workload]["serial"] == 2
    measure = result["measures"]["simulated goodput, mixed, in_flight, at 5x"]
    assert measure["value"] == result["mixed"]["k"]["5"]["in_flight"]["goodput"]
    assert (measure["unit"], measure["better"], len(measure["samples"])) == ("images/s", "higher", 1)
    assert result["mixed"]["ratios_at_k"] == 5
    assert result["uniform"]["ratios_at_k"] == 3
    assert result["settings"]["accelerator"] == "h100"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dry-run", "--max-rows", "1"], "--max-rows is 1"),
        (["--dry-run", "--seeds", "0"], "--seeds is 0"),
        (["--dry-run", "--slo-ms", "500"], "--slo-ms is for a live server: leave it out, or --dry-run"),
        (["--dry-run", "--steps", "4"], "--steps is for a live server"),
        (["--dry-run", "--workload", "odd"], "a dry run has mixed, uniform and all"),
        (["--requests", "1"], "--requests is 1"),
        (["--seconds", "0"], "--seconds is 0: give a number above 0"),
        (["--cv", "0"], "--cv is 0: give a number above 0"),
        (["--attainment", "95"], "--attainment is 95: give a share"),
        (["--workload", "nothing.yaml"], "--workload is nothing.yaml: give mixed or uniform, or a YAML file"),
        (["--url", "127.0.0.1:1", "--fake"], "give one of them"),
        (["--url", "127.0.0.1:1"], "is the server running"),
    ],
)
def test_goodput_says_what_it_needs(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goodput", *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.triton
def test_goodput_of_a_live_server(fake_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "goodput.json"
    server = ["--fake", "--model", str(fake_export), "--log", str(tmp_path / "log")]
    load = ["--steps", "2,10", "--size", "64", "--slo-ms", "400", "--attainment", "0.6", "--repeats", "3"]
    load += ["--seconds", "3", "--requests", "80", "--seeds", "1", "--apart", "0.5"]
    code = main(["goodput", *server, *load, "--json", str(kept)])
    result = json.loads(kept.read_text())
    found = result["goodput"]["400 ms"]
    assert code == (1 if result["partial"] else 0)
    # A busy machine may be too slow for the only trial that there is time for.
    assert ["no rate down to" in failure for failure in result["failures"]] == [True] * (found["rate"] == 0)
    assert found["trials"]
    assert all(trial["low"] <= trial["attainment"] <= trial["high"] for trial in found["trials"])
    assert all(trial["outcomes"].get("ok", 0) > 0 for trial in found["trials"])
    assert result["measures"]["goodput at 400 ms"]["value"] == found["rate"]
    assert result["overheads"]["step_ms"] > 5
    (plot,) = result["plots"]
    assert {"in time", "low", "high", "needed"} == set(plot["series"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["goodput"] == result["goodput"]


def second_trial(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Have something happen before it."""
    made = 0

    async def attempted(*arguments: Any) -> Attempted:
        nonlocal made
        made += 1
        if made == 2:
            happens()
        return await attempt(*arguments)

    monkeypatch.setattr(live_goodput, "attempt", attempted)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("dies", "said"), [(True, "the server went away: "), (False, "interrupted")])
def test_an_early_end_is_told_and_what_was_found_is_kept(
    dies: bool, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "goodput.json"
    load = ["--slo-ms", "200", "160", "--requests", "80", "--max-rows", "2", "--apart", "1"]
    with OddTriton() as server:
        second_trial(monkeypatch, server.die if dies else interrupt)
        assert main(["goodput", "--url", server.url, *load, "--json", str(kept)]) == 1
    result = json.loads(kept.read_text())
    assert result["partial"] is True
    (failure,) = result["failures"]
    assert failure.startswith(said)
    assert capsys.readouterr().err == f"goodput: {failure}\n"
    assert len(result["goodput"]["200 ms"]["trials"]) == 1
    assert "goodput at 200 ms" in result["measures"]


def test_a_server_that_fails_is_told_and_what_was_found_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "goodput.json"
    asked = itertools.count()
    failing = False

    def infer(request: Any) -> Any:
        if failing and next(asked) % 8 == 0:
            raise RuntimeError("out of memory")
        return answered(request)

    def fail() -> None:
        nonlocal failing
        failing = True

    with OddTriton(infer) as server:
        second_trial(monkeypatch, fail)
        load = ["--slo-ms", "100", "--requests", "80", "--max-rows", "2", "--apart", "1"]
        assert main(["goodput", "--url", server.url, *load, "--json", str(kept)]) == 1
    result = json.loads(kept.read_text())
    # Trials that ended before the share of errors was too large have some to tell too.
    failures = result["failures"]
    assert "requests, more than may be late" in failures[0]
    assert all("out of memory" in failure for failure in failures)
    assert capsys.readouterr().err.splitlines()[-len(failures) :] == [f"goodput: {failure}" for failure in failures]
    assert result["partial"] is True
    assert result["goodput"]["100 ms"]["trials"]
