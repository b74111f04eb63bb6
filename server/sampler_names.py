"""What samplers are called: our names, diffusers' classes, AUTOMATIC1111's and ComfyUI's labels."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

SCHEDULES = (
    "normal",
    "karras",
    "exponential",
    "polyexponential",
    "beta",
    "kl_optimal",
    "sgm_uniform",
    "simple",
    "ddim_uniform",
    "align_your_steps",
    "align_your_steps_sdxl",
)
SCHEDULE_LABELS = {
    "automatic": "normal",
    "uniform": "normal",
    "sgm uniform": "sgm_uniform",
    "ddim": "ddim_uniform",
    "kl optimal": "kl_optimal",
    "align your steps": "align_your_steps",
    "ays": "align_your_steps",
}


@dataclass(frozen=True, slots=True)
class Sampler:
    """One sampler as clients see it.

    Attributes:
        name: ours.
        diffusers: the class with its settings, where it has one.
        aliases: other tools' names, besides those.
        options: request fields that it heeds: `eta`, `solver_order`.
        schedules: whether sigma schedules other than its own apply.
        calls: UNet calls for n steps.
        summary: what it is, in a phrase.
    """

    name: str
    diffusers: str
    aliases: tuple[str, ...]
    options: tuple[str, ...]
    schedules: bool
    calls: str
    summary: str

    @property
    def max_order(self) -> int:
        """The highest `solver_order`."""
        return 4 if self.name == "lms" else 3


SAMPLERS: tuple[Sampler, ...] = (
    Sampler("euler", "EulerDiscreteScheduler", ("Euler",), (), True, "n", "first order"),
    Sampler("euler_ancestral", "EulerAncestralDiscreteScheduler", ("Euler a",), ("eta",), True, "n",
            "first order, fresh noise"),
    Sampler("heun", "HeunDiscreteScheduler", ("Heun",), (), True, "2n - 1", "second order"),
    Sampler("dpm2", "KDPM2DiscreteScheduler", ("DPM2", "dpm_2"), (), True, "2n - 1", "second order, midpoint"),
    Sampler("dpm2_ancestral", "KDPM2AncestralDiscreteScheduler", ("DPM2 a", "dpm_2_ancestral"), ("eta",), True,
            "2n - 1", "second order, midpoint, fresh noise"),
    Sampler("lms", "LMSDiscreteScheduler", ("LMS",), ("solver_order",), True, "n", "linear multistep, order 4"),
    Sampler("dpmpp_2s_ancestral", "", ("DPM++ 2S a",), ("eta",), True, "2n - 1", "second order, fresh noise"),
    Sampler("dpmpp_sde", "DPMSolverSDEScheduler", ("DPM++ SDE",), ("eta",), True, "2n - 1",
            "second order, stochastic"),
    Sampler("dpmpp_2m", "DPMSolverMultistepScheduler", ("DPM++ 2M",), (), True, "n", "second order, multistep"),
    Sampler("dpmpp_3m", "DPMSolverMultistepScheduler solver_order=3", ("DPM++ 3M",), (), True, "n",
            "third order, multistep"),
    Sampler("dpmpp_2m_sde", "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++", ("DPM++ 2M SDE",), (), True,
            "n", "second order, multistep, stochastic"),
    Sampler("dpmpp_2m_sde_heun", "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++ solver_type=heun",
            ("DPM++ 2M SDE Heun",), (), True, "n", "second order, multistep, stochastic, Heun's form"),
    Sampler("dpmpp_3m_sde", "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++ solver_order=3",
            ("DPM++ 3M SDE",), (), True, "n", "third order, multistep, stochastic"),
    Sampler("dpmpp_singlestep", "DPMSolverSinglestepScheduler", (), ("solver_order",), True, "n",
            "orders 1 to 3 in blocks of calls"),
    Sampler("deis", "DEISMultistepScheduler", ("DEIS",), ("solver_order",), True, "n", "orders 1 to 3, multistep"),
    Sampler("unipc", "UniPCMultistepScheduler", ("UniPC", "uni_pc_bh2"), ("solver_order",), True, "n",
            "predictor-corrector, orders 1 to 3, B(h) = e^h - 1"),
    Sampler("unipc_bh1", "UniPCMultistepScheduler solver_type=bh1", ("uni_pc",), ("solver_order",), True, "n",
            "predictor-corrector, orders 1 to 3, B(h) = h"),
    Sampler("sa", "SASolverScheduler", ("SA Solver", "sa_solver"), (), True, "n",
            "predictor-corrector, second order, stochastic"),
    Sampler("dpm_fast", "", ("DPM fast",), ("eta",), False, "n", "orders 1 to 3, blocks even in log sigma"),
    Sampler("restart", "", ("Restart",), (), True, "varies", "Heun's steps, the last levels twice or thrice"),
    Sampler("ddim", "DDIMScheduler", ("DDIM",), ("eta",), True, "n", "first order"),
    Sampler("ddpm", "DDPMScheduler", ("DDPM",), (), False, "n", "first order, fresh noise"),
    Sampler("pndm", "PNDMScheduler", ("PLMS",), (), False, "n + 1", "linear multistep, order 4"),
    Sampler("lcm", "LCMScheduler", ("LCM",), (), False, "n", "for checkpoints distilled as consistency models"),
    Sampler("tcd", "TCDScheduler", ("TCD",), ("eta",), False, "n", "for checkpoints distilled as trajectory models"),
)  # fmt: skip
SAMPLER_BY_NAME = {sampler.name: sampler for sampler in SAMPLERS}


def _folded(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


_SAMPLER_NAMES = {
    _folded(name): sampler.name
    for sampler in SAMPLERS
    for name in (sampler.name, *sampler.aliases, *([sampler.diffusers] if sampler.diffusers.isalnum() else []))
}
_SCHEDULE_NAMES = {**{_folded(kind): kind for kind in SCHEDULES}, **SCHEDULE_LABELS}
_SUFFIXES = sorted((name for name in _SCHEDULE_NAMES if name != "ddim"), key=len, reverse=True)


def find_sampler(text: str) -> tuple[str, str | None] | None:
    """A sampler by any of its names, and the schedule that a label such as "DPM++ 2M Karras" ends in."""
    folded = _folded(text)
    if folded in _SAMPLER_NAMES:
        return _SAMPLER_NAMES[folded], None
    for suffix in _SUFFIXES:
        head = folded.removesuffix(f" {suffix}")
        if head != folded and head in _SAMPLER_NAMES:
            return _SAMPLER_NAMES[head], _SCHEDULE_NAMES[suffix]
    return None


def find_schedule(text: str) -> str | None:
    """A schedule by any of its names."""
    return _SCHEDULE_NAMES.get(_folded(text))


def nearest_sampler(text: str) -> str | None:
    """Our name of the sampler whose name is most like this one."""
    close = difflib.get_close_matches(_folded(text), _SAMPLER_NAMES, n=1, cutoff=0.5)
    return _SAMPLER_NAMES[close[0]] if close else None
