"""The rules come from LoadGen itself, and a run says where it leaves them."""

import importlib
from dataclasses import replace

import pytest

from bench.loadgen.rules import SCENARIOS, Scenario, configured, differences, official, settings_of
from server.errors import ServerError


def test_the_rules_are_those_of_the_library() -> None:
    single, offline, server = (official(scenario) for scenario in SCENARIOS)
    assert {single.duration, offline.duration, server.duration} == {600.0}
    assert (offline.samples, offline.percentile, offline.latency) == (5000, None, None)
    assert (server.percentile, server.latency) == (0.99, 20.0)
    assert (single.percentile, single.latency) == (0.9, None)
    assert {rule.prompts for rule in (single, offline, server)} == {5000}
    assert (server.steps, server.guidance, server.sampler) == (20, 8.0, "euler")


def test_a_scaled_run_says_what_was_scaled() -> None:
    ruled = official("Offline")
    used = replace(ruled.scaled(0.01), guidance=2.0)
    assert differences(ruled, used) == {
        "duration": {"rule": 600.0, "used": 6.0},
        "samples": {"rule": 5000, "used": 50},
        "guidance": {"rule": 8.0, "used": 2.0},
    }
    assert differences(ruled, ruled.scaled(1)) == {}
    assert ruled.scaled(1e-6).samples == 2


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_settings_are_ones_that_loadgen_has(scenario: Scenario) -> None:
    settings = configured(scenario)
    for name, value in settings_of(scenario, official(scenario), 4.0).items():
        setattr(settings, name, value)
        assert getattr(settings, name) == value
    if scenario == "SingleStream":
        assert settings.single_stream_expected_latency_ns == 250_000_000
    assert settings.min_duration_ms == 600_000


def test_without_loadgen_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ServerError, match=r"run `pip install '\.\[bench\]'`"):
        official("Server")
