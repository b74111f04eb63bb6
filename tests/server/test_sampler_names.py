"""server.sampler_names: what other tools call a sampler finds ours, and the list says what the samplers do."""

import itertools
import re

import numpy as np
import pytest

from server.levels import KINDS, Choice
from server.sampler_names import (
    SAMPLER_BY_NAME,
    SAMPLERS,
    SCHEDULES,
    Sampler,
    find_sampler,
    find_schedule,
    nearest_sampler,
)
from server.samplers import METHODS, sampler_table
from tests.fakes import trained
from tests.oracles import ORACLES

AUTOMATIC1111 = {
    "Euler": "euler",
    "Euler a": "euler_ancestral",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm2",
    "DPM2 a": "dpm2_ancestral",
    "DPM++ 2S a": "dpmpp_2s_ancestral",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "dpmpp_2m_sde_heun",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "DPM fast": "dpm_fast",
    "Restart": "restart",
    "DDIM": "ddim",
    "PLMS": "pndm",
    "UniPC": "unipc",
    "LCM": "lcm",
}
AUTOMATIC1111_SCHEDULES = {
    "Automatic": "normal",
    "Uniform": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "polyexponential",
    "SGM Uniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": "align_your_steps",
    "Simple": "simple",
    "Normal": "normal",
    "DDIM": "ddim_uniform",
    "Beta": "beta",
}
COMFYUI = {
    "euler": "euler",
    "euler_ancestral": "euler_ancestral",
    "heun": "heun",
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_ancestral",
    "lms": "lms",
    "dpm_fast": "dpm_fast",
    "dpmpp_2s_ancestral": "dpmpp_2s_ancestral",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "deis": "deis",
    "sa_solver": "sa",
    "ddim": "ddim",
    "uni_pc": "unipc_bh1",
    "uni_pc_bh2": "unipc",
}
# Classes of which several samplers are settings stand for the one without any.
DIFFUSERS = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_ancestral",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_singlestep",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "SASolverScheduler": "sa",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}


def plain(text: str) -> str:
    """Without what case and spacing say; "UniPC" and ComfyUI's "uni_pc" remain two names."""
    return " ".join(re.split(r"[\s_-]+", text.strip().lower()))


@pytest.mark.parametrize("labels", [AUTOMATIC1111, COMFYUI, DIFFUSERS])
def test_names_of_other_tools_find_our_sampler(labels: dict[str, str]) -> None:
    assert {label: find_sampler(label) for label in labels} == {label: (name, None) for label, name in labels.items()}
    assert set(labels.values()) <= set(METHODS)


def test_our_own_names_find_themselves() -> None:
    assert {name: find_sampler(name) for name in METHODS} == {name: (name, None) for name in METHODS}


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ SDE Karras", ("dpmpp_sde", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 2M SDE Heun Karras", ("dpmpp_2m_sde_heun", "karras")),
        ("DPM++ 3M SDE Exponential", ("dpmpp_3m_sde", "exponential")),
        ("DPM++ 2S a Karras", ("dpmpp_2s_ancestral", "karras")),
        ("DPM2 a Karras", ("dpm2_ancestral", "karras")),
        ("LMS Karras", ("lms", "karras")),
        ("Euler SGM Uniform", ("euler", "sgm_uniform")),
        ("Euler a Align Your Steps", ("euler_ancestral", "align_your_steps")),
        ("DPM++ 2M Normal", ("dpmpp_2m", "normal")),
        ("UniPC Beta", ("unipc", "beta")),
    ],
)
def test_a_label_may_end_in_a_schedule(label: str, found: tuple[str, str]) -> None:
    assert find_sampler(label) == found
    for written in (label.upper(), label.lower(), f"  {label.replace(' ', '  ')} ", label.replace(" ", "_")):
        assert find_sampler(written) == found, written


def test_case_and_spacing_do_not_matter() -> None:
    for written in ("EULER A", " euler  a", "Euler_A", "euler-a", "Euler Ancestral", "EULER-ANCESTRAL"):
        assert find_sampler(written) == ("euler_ancestral", None), written
    for written in ("dpm++ 2m karras", "DPM++_2M-Karras", "dpmpp 2m karras", "dpmpp_2m_karras"):
        assert find_sampler(written) == ("dpmpp_2m", "karras"), written
    assert find_sampler("dpmsolvermultistepscheduler") == ("dpmpp_2m", None)


@pytest.mark.parametrize("label", ["", "Karras", "DPM adaptive", "DPM++ 2M Karas", "Euler Euler", "normal", "Euler b"])
def test_what_is_no_sampler_is_not_found(label: str) -> None:
    assert find_sampler(label) is None


@pytest.mark.parametrize(
    ("label", "nearest"),
    [
        ("eulre", "euler"),
        ("Euler b", "euler_ancestral"),
        ("dpm++ 2n", "dpmpp_2m"),
        ("dpmpp_2m_sed", "dpmpp_2m_sde"),
        ("unipcc", "unipc"),
        ("DDIN", "ddim"),
        ("KDPM2DiscretScheduler", "dpm2"),
        ("LCMSchedule", "lcm"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(label: str, nearest: str) -> None:
    assert find_sampler(label) is None
    assert nearest_sampler(label) == nearest


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert nearest_sampler("qqqqqqqqqqqqqq") is None


def test_schedules_have_the_names_of_other_tools() -> None:
    found = {label: find_schedule(label) for label in AUTOMATIC1111_SCHEDULES}
    assert found == AUTOMATIC1111_SCHEDULES
    assert {kind: find_schedule(kind) for kind in KINDS} == {kind: kind for kind in KINDS}
    assert find_schedule("SGM_uniform") == find_schedule(" sgm  uniform ") == "sgm_uniform"
    assert find_schedule("karass") is None


def test_the_list_holds_what_there_is() -> None:
    assert [sampler.name for sampler in SAMPLERS] == list(dict.fromkeys(sampler.name for sampler in SAMPLERS))
    assert set(SAMPLER_BY_NAME) == set(METHODS)
    assert set(SCHEDULES) == set(KINDS)
    assert len(SCHEDULES) == len(KINDS)
    assert {s.name: set(s.options) for s in SAMPLERS} == {name: set(m.options) for name, m in METHODS.items()}


def test_no_two_samplers_share_a_name() -> None:
    names = {
        sampler.name: {plain(name) for name in (sampler.name, sampler.diffusers, *sampler.aliases) if name}
        for sampler in SAMPLERS
    }
    shared = {
        (one, other): names[one] & names[other]
        for one, other in itertools.combinations(names, 2)
        if names[one] & names[other]
    }
    assert shared == {}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_the_list_says_which_class_of_diffusers_it_is_compared_with(sampler: Sampler) -> None:
    name, *settings = sampler.diffusers.split() or [""]
    if sampler.name in ("dpmpp_2s_ancestral", "dpmpp_sde", "dpm_fast", "restart"):
        assert sampler.name not in ORACLES
        return
    oracle = ORACLES[sampler.name]
    assert name == oracle.name
    # These two are the same for all samplers of a checkpoint.
    said = {key: str(value) for key, value in oracle.settings.items() if key not in ("clip_sample", "skip_prk_steps")}
    assert dict(setting.split("=") for setting in settings) == said


@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_the_list_says_how_many_calls_are_made(sampler: Sampler, steps: int) -> None:
    calls = sampler_table(sampler.name, Choice(kind="normal", steps=steps), trained()).calls
    if sampler.calls != "varies":
        assert calls == {"n": steps, "2n - 1": 2 * steps - 1, "n + 1": steps + 1}[sampler.calls]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_the_list_says_whether_sigma_schedules_apply(sampler: Sampler) -> None:
    plain_levels = sampler_table(sampler.name, Choice(kind="normal", steps=12), trained()).lines
    karras = sampler_table(sampler.name, Choice(kind="karras", steps=12), trained()).lines
    assert np.array_equal(plain_levels, karras) == (not sampler.schedules)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_every_option_in_the_list_makes_a_difference(sampler: Sampler) -> None:
    def lines(eta: float | None, order: int | None) -> list[list[float]]:
        table = sampler_table(sampler.name, Choice(kind="normal", steps=9), trained(), eta, order)
        found: list[list[float]] = table.lines.tolist()
        return found

    assert (lines(0.25, None) != lines(0.75, None)) == ("eta" in sampler.options)
    orders = [lines(None, order) for order in range(1, sampler.max_order + 1)]
    distinct = sum(one != other for one, other in itertools.pairwise(orders))
    assert distinct == (len(orders) - 1 if "solver_order" in sampler.options else 0)
