"""MLPerf Inference's rules for Stable Diffusion XL, as LoadGen knows them, and what a run makes of them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from server.errors import ServerError

Scenario: TypeAlias = Literal["SingleStream", "Offline", "Server"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
# As LoadGen's configuration calls the benchmark.
BENCHMARK = "stable-diffusion-xl"
BUILT_IN = 0
# Of the reference implementation (mlcommons/inference, text_to_image): all images share a negative prompt and noise.
STEPS, GUIDANCE, SAMPLER, SEED = 20, 8.0, "euler", 0
NEGATIVE_PROMPT = "normal quality, low quality, worst quality, low res, blurry, nsfw, nude"
# With fewer, LoadGen divides by no interval.
FEWEST_SAMPLES = 2


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a run of a scenario valid.

    Attributes:
        duration: seconds that queries are issued for at least; of Offline, that its one query takes.
        samples: images at least.
        prompts: how many different ones.
        percentile: of the latency that counts, 0 to 1; Offline has none.
        latency: seconds that this percentile may take; only Server has a bound.
        steps, guidance, sampler, negative_prompt: of every request.
    """

    duration: float
    samples: int
    prompts: int
    percentile: float | None
    latency: float | None
    steps: int = STEPS
    guidance: float = GUIDANCE
    sampler: str = SAMPLER
    negative_prompt: str = NEGATIVE_PROMPT

    def scaled(self, scale: float) -> Rules:
        """The same for a run of that part of the length."""
        samples = max(FEWEST_SAMPLES, math.ceil(self.samples * scale))
        return replace(self, duration=self.duration * scale, samples=samples)


def library() -> Any:
    """LoadGen.

    Raises:
        ServerError: it is not installed.
    """
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError:
        raise ServerError(
            "mlperf needs MLCommons' LoadGen, which is not installed; run `pip install '.[bench]'`"
        ) from None


def configured(scenario: Scenario) -> Any:
    """LoadGen's settings for the benchmark, as its own configuration has them.

    Raises:
        ServerError: LoadGen is not installed, or has none.
    """
    settings = library().TestSettings()
    # The configuration is in the library, whatever the file; other kinds than this are read once in a process.
    if settings.FromConfig("", BENCHMARK, scenario, BUILT_IN) != 0:
        raise ServerError(f"LoadGen has no configuration of {BENCHMARK} in scenario {scenario}; is it another version?")
    settings.scenario = getattr(library().TestScenario, scenario)
    return settings


def official(scenario: Scenario) -> Rules:
    """The rules of a submission.

    Raises:
        ServerError: LoadGen is not installed.
    """
    settings = configured(scenario)
    percentiles = {
        "SingleStream": settings.single_stream_target_latency_percentile,
        "Server": settings.server_target_latency_percentile,
    }
    return Rules(
        duration=settings.min_duration_ms / 1e3,
        samples=settings.min_query_count,
        prompts=settings.performance_sample_count_override,
        percentile=percentiles.get(scenario),
        latency=settings.server_target_latency_ns / 1e9 if scenario == "Server" else None,
    )


def differences(rules: Rules, used: Rules) -> dict[str, dict[str, Any]]:
    """Where a run leaves the rules: by name, what the rule is and what was used."""
    ruled, taken = asdict(rules), asdict(used)
    return {name: {"rule": ruled[name], "used": taken[name]} for name in ruled if ruled[name] != taken[name]}


def settings_of(scenario: Scenario, rules: Rules, samples_per_second: float) -> Mapping[str, int | float]:
    """LoadGen's settings by their names.

    Args:
        samples_per_second: what LoadGen plans with: Server's rate; of the others how many queries it makes up in
            advance, which must last for the whole duration.
    """
    settings: dict[str, int | float] = {
        "min_duration_ms": round(1e3 * rules.duration),
        "min_query_count": rules.samples,
        # 0 takes as many as there are prompts.
        "performance_sample_count_override": 0,
    }
    match scenario:
        case "SingleStream":
            settings["single_stream_expected_latency_ns"] = round(1e9 / samples_per_second)
            settings["single_stream_target_latency_percentile"] = rules.percentile or 0.0
        case "Offline":
            settings["offline_expected_qps"] = samples_per_second
        case "Server":
            settings["server_target_qps"] = samples_per_second
            settings["server_target_latency_ns"] = round(1e9 * (rules.latency or 0.0))
            settings["server_target_latency_percentile"] = rules.percentile or 0.0
    return settings
